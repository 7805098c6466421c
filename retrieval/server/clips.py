"""Searching with an uploaded clip or picture: the file goes once it is embedded, its embedding is kept a while."""

import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from dmae.inference.embedding import encode_frames
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.processing.choice_dmae import choose_frames
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import video_as_text
from dmae.retrieval.server import media
from dmae.retrieval.server.studio import Studio

KEPT = 256  # embeddings; the address of an older search asks for its clip again


class Clips:
    """Queries made of uploads, by a key that nobody can guess."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self._folder = tempfile.TemporaryDirectory(prefix="dmae-uploads-")  # only this user may look into it
        self._kept: OrderedDict[str, tuple[str, TextEmbeddings]] = OrderedDict()
        self._guard = threading.Lock()

    def embed(self, upload: BinaryIO, index: VideoIndex) -> TextEmbeddings:
        """A clip's or picture's frames, which a worker decodes, as a query. ValueError for what is neither."""
        sampler = index.processor.feature_extractor
        with tempfile.NamedTemporaryFile(dir=self._folder.name) as copy:
            shutil.copyfileobj(upload, copy)
            copy.flush()
            try:
                times = self.studio.run(media.frame_times, copy.name)
                chosen = choose_frames(times, sampler.num_frames, sampler.sampling, sampler.fps)
                pictures = self.studio.run(media.frames_at, copy.name, times[chosen])
                clip = sampler.decode(pictures, do_sample_frames=False)
            except ValueError as error:  # names the copy, which is nobody's business
                reason = str(error).replace(copy.name, "the upload").split("; re-encode")[0]
                raise ValueError(f"no clip or picture that can be read: {reason}") from error
        return video_as_text(encode_frames(index.model, index.processor, clip.frames, clip.timestamps))

    def keep(self, query: TextEmbeddings, name: str) -> str:
        """Remember a query; the key goes into addresses."""
        key = secrets.token_urlsafe(12)
        with self._guard:
            self._kept[key] = Path(name).name[:80], query
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return key

    def embeddings(self, key: str) -> TextEmbeddings:
        return self._found(key)[1]

    def name(self, key: str) -> str:
        return self._found(key)[0]

    def _found(self, key: str) -> tuple[str, TextEmbeddings]:
        with self._guard:
            if key not in self._kept:
                raise ValueError("the clip of this search is not kept any more; upload it again")
            self._kept.move_to_end(key)
            return self._kept[key]

    def close(self) -> None:
        self._folder.cleanup()
