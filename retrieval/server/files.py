"""An indexed video's own file over HTTP: always as a video or a download, whatever it calls itself."""

import mimetypes
import os
import stat
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import FileResponse

# a file named clip.html or clip.svg would run in this page's name
SANDBOX = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "private, no-cache"}


def file_response(path: str, download: bool) -> FileResponse:
    """A regular file, with ranges. 404 for anything else: a FIFO in its place would never answer."""
    try:
        status = os.stat(path)
    except OSError:
        raise HTTPException(404, "the video's file is not there any more") from None
    if not stat.S_ISREG(status.st_mode):
        raise HTTPException(404, "the video's path leads to something that is not a file any more")
    kind = mimetypes.guess_type(path)[0] or ""
    kind = kind if kind.startswith("video/") or kind == "image/gif" else "application/octet-stream"
    headers = dict(SANDBOX)
    if download:
        name = os.fsencode(os.path.basename(path)).decode("utf-8", "replace")
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return FileResponse(path, media_type=kind, headers=headers, stat_result=status)
