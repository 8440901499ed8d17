"""What mkdocs calls: adds the generated pages, shows pages that no section names under the how-to guides, and writes
llms.txt (https://llmstxt.org) and llms-full.txt from the Markdown of the pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from reference.markdown import summary
from reference.pages import pages
from reference.python_api import written_out

UNSORTED = "How-to guides"
_texts: dict[str, str] = {}
_sections: dict[str, list[Page]] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add what is in the directory and not in the navigation."""
    directory = Path(config.docs_dir)
    named = set(_files(config.nav or []))
    others = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.md"))
    section = next(item[UNSORTED] for item in config.nav or [] if UNSORTED in item)
    section += [name for name in others if name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Remember which pages a section has."""
    _sections.clear()
    for item in nav.items:
        _sections[item.title or "Home"] = _pages(item)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Remember what a page says."""
    _texts[page.file.src_uri] = markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Write each page's Markdown next to its HTML, a list of the pages, and one file with all of them."""
    head, site = f"# {config.site_name}\n\n> {config.site_description}\n", Path(config.site_dir)
    lines, whole = [head], [head]
    urls = {page.file.src_uri: f"{page.canonical_url}index.md" for found in _sections.values() for page in found}
    for section, found in _sections.items():
        lines += [f"## {section}", ""]
        for page in found:
            text = _linked(written_out(_texts[page.file.src_uri]), posixpath.dirname(page.file.src_uri), urls)
            about = summary(text)
            lines.append(f"- [{page.title}]({urls[page.file.src_uri]}){about and f': {about}'}")
            whole.append(f"<!-- {page.canonical_url} -->\n\n{text}")
            (site / page.url / "index.md").write_text(text, encoding="utf-8")
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines), encoding="utf-8")
    (site / "llms-full.txt").write_text("\n".join(whole), encoding="utf-8")


def _linked(text: str, directory: str, urls: dict[str, str]) -> str:
    """``text`` of a page in ``directory``, with addresses in place of the names of other pages."""

    def there(found: re.Match[str]) -> str:
        return urls.get(posixpath.normpath(posixpath.join(directory, found[0])), found[0])

    return re.sub(r"(?<=\]\()[\w./-]+\.md(?=[#)])", there, text)


def _pages(item: Any) -> list[Page]:
    return [item] if isinstance(item, Page) else [page for child in item.children or () for page in _pages(child)]


def _files(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [name for child in children for name in _files(child)]
