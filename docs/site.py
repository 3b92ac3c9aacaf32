"""Lays the pages out as they lie in the repository, so that their links work there and here."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """README.md and its like at the top, docs/ below, and every file that a page links to."""
    docs = config["docs_dir"]
    laid_out = Files([one for one in files if one.src_dir != docs])
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    linked = {path for page in pages for path in targets(page) if path.is_file()}
    for path in dict.fromkeys([*pages, *sorted(linked)]):
        uri = path.relative_to(ROOT).as_posix()
        laid_out.append(File.generated(config, uri, abs_src_path=str(path)))
    return laid_out


def on_page_markdown(markdown, page, **_):
    """A folder has no page: what links to one here is plain text."""
    beside = (ROOT / page.file.src_uri).parent

    def shown(link):
        return link[2] if "://" not in link[3] and (beside / link[3]).is_dir() else link[0]

    return LINK.sub(shown, markdown)


def targets(page):
    """Files of the repository that a page links to."""
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        path = (page.parent / link[3]).resolve()
        if "://" not in link[3] and path.is_relative_to(ROOT):
            yield path
