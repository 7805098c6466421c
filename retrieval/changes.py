"""What has to be done to an index so that it follows the files: embed, rewrite rows that moved, or nothing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from dmae.data.listing import clip_id
from dmae.data.sources import SourceVideo
from dmae.retrieval.places import content_id, is_gone


@dataclass
class Changes:
    """todo: items to embed, in order, one per video ({video_id, path, signature, content, metadata, clip, copies, and
    `done`, the windows that an interrupted run has embedded already}). rewrites: video_id -> columns of its rows that
    change. skipped: {video_id, path, error, signature}. The counts are of videos."""

    todo: list[dict] = field(default_factory=list)
    rewrites: dict[str, dict] = field(default_factory=dict)
    skipped: list[dict] = field(default_factory=list)
    unchanged: int = 0
    moved: int = 0


@dataclass
class Known:
    """A video of the index: its rows' common columns, and the windows that are there."""

    row: dict
    windows: list[tuple[float, float]]
    complete: bool
    seen: list[SourceVideo] = field(default_factory=list)  # the files of this run with its content

    @property
    def places(self) -> list[dict]:
        """[{path, signature}] of the video and of its copies."""
        first = {"path": self.row["path"], "signature": self.row.get("signature", [])}
        return [first, *self.row.get("copies", [])]

    @property
    def clip(self) -> tuple:
        return tuple(self.row.get("clip") or ())


def find_changes(rows: Iterable[dict], videos: Iterable[SourceVideo], skipped: Mapping[str, dict]) -> Changes:
    """Compare the rows of an index with the files that are there.

    A file whose path, size and time are known has the content that it had; any other is known by a hash of it. skipped:
    by path, what earlier runs could not read: not tried again until it changes.
    """
    known = known_videos(rows)
    by_place = {(place["path"], *video.clip): video for video in known.values() for place in video.places}
    by_content = {(video.row["content"], *video.clip): video for video in known.values() if video.row.get("content")}
    changes, new, replaced = Changes(), {}, set()
    for video in videos:
        clip = tuple(video.clip or ())
        found = by_place.get((video.path, *clip))
        if found is not None and _signature_of(found, video.path) == list(video.signature):
            found.seen.append(video)
            continue
        if skipped.get(video.path, {}).get("signature") == list(video.signature):
            changes.skipped.append(skipped[video.path])
            continue
        try:
            content = content_id(video.path)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            changes.skipped.append({"video_id": video.video_id, "path": video.path, "error": reason})
            continue
        if found is not None and found.row.get("content") != content:
            replaced.add(video.path)
        found = by_content.get((content, *clip))
        if found is not None:
            found.seen.append(video)
        else:
            new.setdefault((content, *clip), []).append(video)
    _follow_known(known, changes, skipped, lambda path: path in replaced or is_gone(path))
    _add_new(new, known, changes)
    return changes


def known_videos(rows: Iterable[dict]) -> dict[str, Known]:
    """The videos of an index by id. A video is complete when its last window is there; older rows say nothing of it."""
    known: dict[str, Known] = {}
    for row in rows:
        video = known.setdefault(row["video_id"], Known(row, [], complete=False))
        video.windows.append((row["start"], row["end"]))
        video.complete |= row.get("last", True)
    return known


def _signature_of(video: Known, path: str) -> list:
    return next(list(place["signature"]) for place in video.places if place["path"] == path)


def _follow_known(
    known: dict[str, Known], changes: Changes, skipped: Mapping[str, dict], left: Callable[[str], bool]
) -> None:
    """Videos of the index: still where they were, moved, copied, described anew, or gone. left: no longer at a path."""
    for video_id, video in known.items():
        if not video.seen:
            continue
        seen = {file.path: file for file in video.seen}
        first = seen.get(video.row["path"]) or video.seen[0]
        moved = first.path != video.row["path"]
        if moved and not left(video.row["path"]):  # out of this run's sight: the file found now is its copy
            moved, place = False, video.places[0]
        else:
            place = {"path": first.path, "signature": list(first.signature)}
        others = [p for p in video.places if p["path"] not in {place["path"], *seen} and not left(p["path"])]
        others += [{"path": f.path, "signature": list(f.signature)} for f in video.seen if f.path != place["path"]]
        wanted = {**place, "copies": others, "metadata": first.metadata}
        if moved:
            taken = known.get(first.video_id)
            wanted["video_id"] = video_id if taken is not None else first.video_id
        if not video.row.get("content"):
            wanted["content"] = content_id(place["path"])
        changed = {name: value for name, value in wanted.items() if value != video.row.get(name, _empty(name))}
        if changed:
            changes.rewrites[video_id] = changed
        if not video.complete and place["path"] not in skipped:
            again = replace(first, path=place["path"], signature=tuple(place["signature"]))
            item = _item(again, changed.get("content") or video.row["content"], changed.get("video_id", video_id))
            changes.todo.append({**item, "done": video.windows})
        elif moved:
            changes.moved += 1
        else:
            changes.unchanged += 1


def _add_new(new: dict[tuple, list[SourceVideo]], known: dict[str, Known], changes: Changes) -> None:
    """Contents that the index has not got. A changed file takes its own id; an id in use elsewhere is left alone."""
    renamed = {changed.get("video_id", video_id): video_id for video_id, changed in changes.rewrites.items()}
    owner = {video_id: video for video_id, video in known.items() if video_id not in changes.rewrites} | {
        name: known[video_id] for name, video_id in renamed.items()
    }
    for (content, *_), (first, *copies) in new.items():
        holder = owner.get(first.video_id)
        other = holder and (holder.seen or (holder.row["path"] != first.path and not is_gone(holder.row["path"])))
        video_id = clip_id(first.path, *(first.clip or (None, None))) if other else first.video_id
        item = _item(first, content, video_id)
        item["copies"] = [{"path": file.path, "signature": list(file.signature)} for file in copies]
        changes.todo.append(item)


def _item(video: SourceVideo, content: str, video_id: str) -> dict:
    item = {"video_id": video_id, "path": video.path, "signature": list(video.signature), "content": content}
    return {**item, "metadata": video.metadata, "clip": video.clip, "copies": []}


def _empty(name: str):
    return {"copies": [], "metadata": {}}.get(name)
