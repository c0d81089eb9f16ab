"""README.md as the package index shows it: no relative link, which would lead nowhere there.

pyproject.toml calls this at each build. With an address under `[project.urls]` ("Source" or "Repository") a link leads
to the file there. Without one, as long as none is published, the path of the file stands behind the words.
"""

import re
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface as Hook
except ImportError:  # outside a build, where only the function is wanted
    Hook = object

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)")


def on_the_index(readme: str, source: str | None, version: str) -> str:
    """Return the README with its relative links made absolute, or written out.

    Args:
        readme: the text of README.md.
        source: address of the repository, as GitHub lays it out; ``None``: none is known.
        version: tag ``vVERSION`` is linked to.

    """

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if source is None:
            path = target.partition("#")[0]
            return f"`{path}`" if words == path else f"{words} [`{path}`]"
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({source.rstrip('/')}/{kind}/v{version}/{target})"

    return RELATIVE.sub(led, readme)


class ReadmeHook(Hook):
    """Sets the long description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put the README into the metadata of the build."""
        urls = metadata.get("urls", {})
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = on_the_index(text, urls.get("Source") or urls.get("Repository"), metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
