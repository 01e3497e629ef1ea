"""The short options of EMAN2 on absl's command line."""

import re
from collections.abc import Sequence


def take_back_v(argv: Sequence[str]) -> list[str]:
    """``-v 2``, ``-v=2`` and ``-v2`` mean ``--verbose=2``; absl has its own ``-v``."""
    out, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--?v=?(\d+)?", word)
        if match is None:
            out.append(word)
        elif match[1] is not None:
            out.append(f"--verbose={match[1]}")
        else:
            level = rest.pop(0) if rest and rest[0].isdigit() else "1"
            out.append(f"--verbose={level}")
    return out
