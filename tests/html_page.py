"""A page of HTML, read for tests."""

import html.parser

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Elements of a page, with the text of each; unclosed or crossed ones fail."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, "elements are left open"

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def all(self, tag):
        """Attributes and text of every element of a kind."""
        return [(a, "".join(text).strip()) for name, a, text in self.elements if name == tag]

    def rows(self, kind):
        """Cells of the rows of the tables of a class."""
        found, inside = [], False
        for name, attributes, text in self.elements:
            if name == "table":
                inside = attributes.get("class") == kind
            elif inside and name == "tr":
                found.append([])
            elif inside and name in ("td", "th"):
                found[-1].append("".join(text).strip())
        return found
