"""From a URL's path to a file of the site.

Comes in: a decoded path. Goes out: the file that answers it and what its ``[name]`` segments matched, or nothing. No
path leaves the site, and no private file is ever found: a segment is only looked up when it is a plain name, and what
is found must lie in the site after all links are resolved.

Thread: any; it reads the disk, so not the network loop.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from krait_ws.errors import SiteError

_PARAMETER = re.compile(r"\[(\w+)\]")
# On Windows a colon names a stream of a file, "chat.py::$DATA" the code of a script.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\/:]" if os.name == "nt" else r"[\x00-\x1f\x7f\\/]")
_MAX_SEGMENTS = 64


@dataclass(frozen=True, slots=True)
class Match:
    """What answers a path.

    Attributes:
        file: A file of the site, links resolved.
        params: What the ``[name]`` segments matched.
        is_folder_index: It is the index of the folder that the path names without a final slash.
    """

    file: Path
    params: dict[str, str] = field(default_factory=dict)
    is_folder_index: bool = False

    @property
    def is_script(self) -> bool:
        return is_script(self.file)


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table of routes: a URL pattern and its file."""

    url: str
    file: Path


def is_script(file: Path) -> bool:
    """Whether a file is code, whose text is never sent."""
    return file.suffix.lower() == ".py"


def is_private(name: str) -> bool:
    """Whether a file or folder of this name is neither served nor routed."""
    return name.startswith((".", "_"))


class Router:
    """The files of a site as URLs.

    Args:
        root: The site's folder.

    Raises:
        SiteError: The folder does not exist, or two ``[name]`` files of a folder claim the same URLs.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise SiteError(
                f"the site {str(root)!r} is no folder: name the folder that holds your pages and route scripts"
            )
        self.root = root.resolve()
        try:
            self._check_parameters(self.root)
        except OSError as error:
            raise SiteError(f"the site cannot be read: {error}") from None

    def match(self, path: str) -> Match | None:
        """What answers ``path``, the decoded path of a URL; ``None`` when nothing does.

        A file of exactly the name wins over ``[name]``, and within a name ``.py`` over ``.html`` over the file itself.
        """
        if not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        if len(segments) > _MAX_SEGMENTS:
            return None
        if segments[-1] == "":
            segments[-1] = "index"  # a folder's path
            if "index" in segments[:-1]:
                return None
        if any(is_private(segment) or not segment or _FORBIDDEN.search(segment) for segment in segments):
            return None
        return self._match(self.root, segments, {}, ends_in_slash=path.endswith("/"))

    def pattern(self, file: Path) -> str:
        """The URL pattern of a matched file, as ``routes`` has it: ``/chat/[room]`` for ``chat/[room].py``."""
        inside = file.relative_to(self.root)
        return _url("/" + "".join(f"{part}/" for part in inside.parts[:-1]), inside)

    def routes(self) -> list[Route]:
        """Every URL pattern of the site, sorted."""
        return sorted(self._walk(self.root, "/", (self.root,)), key=lambda route: route.url)

    def _match(self, folder: Path, segments: list[str], params: dict[str, str], *, ends_in_slash: bool) -> Match | None:
        name, rest = segments[0], segments[1:]
        if not rest:
            return self._match_last(folder, name, params, ends_in_slash=ends_in_slash)
        if (subfolder := self._folder(folder, name)) is not None:
            found = self._match(subfolder, rest, params, ends_in_slash=ends_in_slash)
            if found:
                return found
        for subfolder, parameter in self._parameters(folder, folders=True):
            found = self._match(subfolder, rest, {**params, parameter: name}, ends_in_slash=ends_in_slash)
            if found:
                return found
        return None

    def _match_last(self, folder: Path, name: str, params: dict[str, str], *, ends_in_slash: bool) -> Match | None:
        # The name of a parameter is no name of a page: "/[room]" is a room like every other.
        for candidate in () if _PARAMETER.match(name) else (f"{name}.py", f"{name}.html", name):
            if file := self._file(folder / candidate):
                # Code is run under its name without the ending, never sent under its whole name.
                return None if candidate == name and is_script(file) else Match(file, params)
        if ends_in_slash:
            return None
        if (subfolder := self._folder(folder, name)) is not None:
            index = self._match_last(subfolder, "index", params, ends_in_slash=True)
            if index:
                return Match(index.file, params, is_folder_index=True)
        for file, parameter in self._parameters(folder, folders=False):
            return Match(file, {**params, parameter: name})
        for subfolder, parameter in self._parameters(folder, folders=True):
            index = self._match_last(subfolder, "index", {**params, parameter: name}, ends_in_slash=True)
            if index:
                return Match(index.file, index.params, is_folder_index=True)
        return None

    def _folder(self, folder: Path, name: str) -> Path | None:
        subfolder = None if _PARAMETER.fullmatch(name) else self._inside(folder / name)
        return subfolder if subfolder is not None and subfolder.is_dir() else None

    def _inside(self, path: Path) -> Path | None:
        """``path`` with its links resolved, when it exists in the site and is not private there."""
        try:
            resolved = path.resolve(strict=True)
            inside = resolved.relative_to(self.root)
        except (OSError, ValueError, RuntimeError):
            return None
        return None if any(is_private(part) for part in inside.parts) else resolved

    def _file(self, path: Path) -> Path | None:
        resolved = self._inside(path)
        try:
            # Devices, sockets and pipes are no pages; opening one could block for ever.
            return resolved if resolved and stat.S_ISREG(resolved.stat().st_mode) else None
        except OSError:
            return None

    def _parameters(self, folder: Path, *, folders: bool) -> Iterator[tuple[Path, str]]:
        """The ``[name].py`` and ``[name].html`` files, code first, or the ``[name]`` folders, of a folder."""
        for entry in sorted(folder.iterdir(), reverse=True):
            name = entry.name if folders else entry.stem
            found = _PARAMETER.fullmatch(name)
            if not found:
                continue
            resolved = self._inside(entry)
            if resolved and (resolved.is_dir() if folders else entry.suffix in (".py", ".html") and resolved.is_file()):
                yield resolved, found[1]

    def _walk(self, folder: Path, url: str, above: tuple[Path, ...]) -> Iterator[Route]:
        for entry in sorted(folder.iterdir()):
            if is_private(entry.name) or not (resolved := self._inside(entry)):
                continue
            if resolved.is_dir():
                if resolved not in above:  # else it is a link to a folder above
                    yield from self._walk(entry, f"{url}{entry.name}/", (*above, resolved))
            elif not resolved.is_file():
                continue  # a pipe or a device
            else:
                yield Route(_url(url, entry), resolved)

    def _check_parameters(self, folder: Path) -> None:
        for folders in (False, True):
            found = {path.stem: path.name for path, _ in self._parameters(folder, folders=folders)}
            if len(found) > 1:
                raise SiteError(f"{' and '.join(found.values())} in {folder} claim the same URLs: keep one of them")
        for entry in folder.iterdir():
            name = entry.name if entry.is_dir() else entry.stem
            if name.startswith("[") and name.endswith("]") and not _PARAMETER.fullmatch(name):
                raise SiteError(f"{entry}: a name in brackets has letters, digits and underscores only")
            if entry.is_dir() and not entry.is_symlink() and not is_private(entry.name):
                self._check_parameters(entry)


def _url(folder: str, file: Path) -> str:
    """The URL pattern of a file in the folder of this URL."""
    if file.suffix not in (".py", ".html"):
        return folder + file.name
    return folder if file.stem == "index" else folder + file.stem
