"""Pages that other files of the repository already are: a card a method, the protocols, the guides at its root."""

from __future__ import annotations

import re
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[1]


def copied(source: Path, place: str) -> None:
    """A file of the repository as a page; links to cards lead to their pages, those to other files become names."""

    def target(link: re.Match[str]) -> str:
        text, where = link.groups()
        if re.match(r"\w+:|#", where):
            return link[0]
        file = (source.parent / where.partition("#")[0]).resolve().relative_to(ROOT).as_posix()
        card = re.fullmatch(r"methods/(\w+)(/README\.md)?", file)
        if card and (ROOT / "methods" / card[1] / "README.md").is_file():
            return f"[{text}]({'' if place.startswith('methods/') else 'methods/'}{card[1]}.md)"
        return text if file in text else f"{text} (`{file}`)"

    text = re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", target, source.read_text())
    with mkdocs_gen_files.open(place, "w") as page:
        page.write(text)


copied(ROOT / "methods" / "README.md", "methods/index.md")
for card in sorted(ROOT.glob("methods/*/README.md")):
    copied(card, f"methods/{card.parent.name}.md")
copied(ROOT / "evaluations" / "README.md", "protocols.md")
copied(ROOT / "CONTRIBUTING.md", "contributing.md")
copied(ROOT / "CHANGELOG.md", "changelog.md")
