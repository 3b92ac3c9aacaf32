"""The pages as a site: every link leads somewhere, and nothing comes from another server."""

import html.parser
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
pytest.importorskip("material", reason="needs mkdocs-material, of the extra docs")


class Links(html.parser.HTMLParser):
    """(tag, attribute, address) of all that a page names."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids.add(named.get("id"))
        self.found += [(tag, name, named[name]) for name in ("href", "src") if named.get(name)]


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    names = {path.relative_to(tmp_path).as_posix() for path in pages}
    sources = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert names >= sources | {"index.html", "CONTRIBUTING.html", "SECURITY.html"}
    wrong = []
    for path, links in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the server's root
        for tag, attribute, address in links.found:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                wrong += [address] if (tag, attribute) in LOADS and parts.scheme != "data" else []
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = pages.get(target)
            if not target.is_file() or (inside and parts.fragment not in {"", *inside.ids}):
                wrong.append(f"{path.relative_to(tmp_path)}: {address}")
    assert wrong == []
