"""Pages that other files of the repository already are: a card a method, a protocol a page, notebooks, the guides."""

from __future__ import annotations

import json
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


def protocol(file: Path) -> None:
    """A protocol with its comments, which say where it comes from."""
    with mkdocs_gen_files.open(f"protocols/{file.stem}.md", "w") as page:
        page.write(f"# {file.stem}\n\n`--evaluations {file.stem}`, or a changed copy of this file.\n\n")
        page.write(f"``` {{.yaml}}\n{file.read_text().rstrip()}\n```\n")


def notebook(file: Path) -> None:
    """The cells of a notebook, with what they printed."""
    with mkdocs_gen_files.open(f"notebooks/{file.stem}.md", "w") as page:
        for cell in json.loads(file.read_text())["cells"]:
            text = "".join(cell["source"])
            page.write(f"{text}\n\n" if cell["cell_type"] == "markdown" else f"``` {{.python}}\n{text}\n```\n\n")
            for output in cell.get("outputs", []):
                printed = output.get("text") or output["data"]["text/plain"]
                page.write(f"``` {{.text}}\n{''.join(printed).rstrip()}\n```\n\n")
        page.write(f"This page is the notebook `{file.relative_to(ROOT).as_posix()}`, which the tests run.\n")


copied(ROOT / "methods" / "README.md", "methods/index.md")
for card in sorted(ROOT.glob("methods/*/README.md")):
    copied(card, f"methods/{card.parent.name}.md")
copied(ROOT / "evaluations" / "README.md", "protocols/index.md")
protocols = sorted(ROOT.glob("evaluations/*.yaml"))
for file in protocols:
    protocol(file)
with mkdocs_gen_files.open("protocols/index.md", "a") as index:
    index.write("\n## Files\n\n" + ", ".join(f"[{file.stem}]({file.stem}.md)" for file in protocols) + "\n")
for file in sorted(ROOT.glob("examples/*.ipynb")):
    notebook(file)
copied(ROOT / "CONTRIBUTING.md", "contributing.md")
copied(ROOT / "CHANGELOG.md", "changelog.md")
