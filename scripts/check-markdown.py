"""Checks Markdown offline: relative links, anchors, the width of lines, and that SUMMARY.md lists every page.

usage: python scripts/check-markdown.py        (from anywhere; looks at the files that git knows)
"""

import re
import subprocess
import sys
from pathlib import Path

WIDTH = 120
ROOT = Path(__file__).resolve().parent.parent
# Pages that a program writes.
WRITTEN = ("experiments/ablations/results.md",)
LINK = re.compile(r"(!?)\[(?:[^\[\]`]|`[^`]*`|\[[^\]]*\])*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")


def prose(text):
    """Numbered lines outside of code blocks."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None:
            if mark and line.strip() == fence:
                fence = None
        else:
            yield number, line


def slug(heading):
    """The anchor that GitHub and mdBook give a heading."""
    heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    heading = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return heading.replace(" ", "-")


def anchors(path):
    found, seen = set(), {}
    for _, line in prose(path.read_text()):
        found.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r"#+\s+(.*?)\s*#*$", line)
        if heading:
            name = slug(heading[1])
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found


def too_wide(line):
    """Tables, headings, images and lines that a link or a piece of code fills may be wider."""
    text = line.strip()
    if len(line) <= WIDTH or text.startswith(("|", "#", "![", "<")):
        return False
    return not any(len(piece) > 60 for piece in re.findall(r"\S*\]\([^)]*\)|`[^`]*`|\S+", text))


def main():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split("\n")
    files = sorted({ROOT / name for name in listed if name and (ROOT / name).is_file()})
    problems, links = [], 0
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        if "/results/" in name or "/fixtures/" in name or name in WRITTEN:
            continue
        for number, line in prose(text):
            if too_wide(line):
                problems.append(f"{name}:{number}: {len(line)} columns, at most {WIDTH}")
            for formula in re.findall(r"\\\\[(\[](.*?)\\\\[)\]]", line):
                if swallowed := re.search(r"(?<!\\)\\[,;:!|{}#]", formula):
                    problems.append(f"{name}:{number}: Markdown takes the backslash of {swallowed[0]} in a formula; "
                                    f"write \\{swallowed[0]}")
        # A link may be broken over two lines.
        flat = "\n".join(re.sub(r"`[^`]*`", "`code`", line) for _, line in prose(text))
        for _, target in LINK.findall(flat):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            file, _, anchor = target.partition("#")
            place = (path.parent / file).resolve() if file else path
            if not place.exists():
                problems.append(f"{name}: link to {target}: no such file")
            elif not place.is_relative_to(ROOT):
                problems.append(f"{name}: link to {target}: outside of the repository")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                problems.append(f"{name}: link to {target}: no such heading")
            elif name.startswith("docs/src/") and not place.is_relative_to(ROOT / "docs/src"):
                problems.append(f"{name}: link to {target}: outside of the book, so it breaks once the book is built")
    pages = {p.name for p in (ROOT / "docs/src").glob("*.md")} - {"SUMMARY.md"}
    named = set(re.findall(r"\]\(([^)]+\.md)\)", (ROOT / "docs/src/SUMMARY.md").read_text()))
    problems += [f"docs/src/SUMMARY.md does not list {page}" for page in sorted(pages - named)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"Markdown: {len(files)} files, {links} relative links, 0 problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
