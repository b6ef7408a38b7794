"""Reading the pages: code blocks of README.md and docs/*.md."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in a language; "" for those without one, which hold commands."""
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]
