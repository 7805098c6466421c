"""FrameSampler: any video -> `num_frames` CLIP-ready frames with their mask and times.

sampler = FrameSampler(num_frames=12, size=224)
sampler("clip.mp4")                      # pixel_values (12,3,224,224), video_mask (12,), timestamps (12,)
sampler(["a.mp4", open("b.webm", "rb")]) # the same with a leading axis of 2
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from transformers import BatchFeature, FeatureExtractionMixin

from .arguments_dmae import refuse_unknown, square_side
from .choice_dmae import SAMPLINGS, choose_frames, every_frame
from .decoding_dmae import VideoReader
from .inputs_dmae import DecoderReader, HeldFrames, frame_tensor, held_frames, is_decoder, listed
from .resizing_dmae import FITS, RESAMPLES, resize, resize_and_crop
from .sources_dmae import DecodeLimits, VideoDecodeError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SAVED_WORDS = ("feature_extractor_type", "processor_class", "auto_map", "_processor_class", "deadline")  # no settings
LATER = {"key_frames": False, "fit": "crop", "resample": "bicubic"}  # not written where they are as they were before


class DecodedFrames(NamedTuple):
    """frames (n,3,size,size) uint8 RGB, n <= num_frames; timestamps (n,) float64 seconds, ascending."""

    frames: torch.Tensor
    timestamps: torch.Tensor

    def chosen(self, places: np.ndarray) -> "DecodedFrames":
        """Some of the frames, by their places."""
        return DecodedFrames(self.frames[places], self.timestamps[places])

    @classmethod
    def joined(cls, parts: "list[DecodedFrames]") -> "DecodedFrames":
        return cls(torch.cat([part.frames for part in parts]), torch.cat([part.timestamps for part in parts]))


class FrameSampler(FeatureExtractionMixin):
    """Decodes, chooses, resizes and normalises frames. All arguments are saved with the processor.

    num_frames: frames per video (F); shorter videos are padded with zeros where `video_mask` is False.
    size: side of the square frames in pixels.
    sampling: "fps" | "uniform" | "segment_center" | "segment_random", see `choose_frames`.
    fps: frames per second for "fps".
    image_mean, image_std: per channel, of values in [0,1]; the defaults are CLIP's.
    dtype: name of the torch dtype of `pixel_values`.
    fit: "crop" cuts the middle square, "stretch" squeezes the whole frame into one, as a backbone was trained.
    resample: "bicubic" | "bilinear".
    key_frames: take key frames only, at the moments nearest before those of `sampling`: a fraction of the decoding, at
        other times than asked for (a key frame comes every 1 to 10 seconds).
    max_pixels, max_seconds_to_scan, max_decoded_pixels, max_cpu_seconds: bounds per video, see `DecodeLimits`; beyond
        one: VideoDecodeError.
    """

    model_input_names = ["pixel_values", "video_mask"]

    def __init__(
        self,
        num_frames: int = 12,
        size: int | dict = 224,
        sampling: str = "fps",
        fps: float = 1.0,
        image_mean: tuple[float, float, float] = CLIP_MEAN,
        image_std: tuple[float, float, float] = CLIP_STD,
        dtype: str = "float32",
        fit: str = "crop",
        resample: str = "bicubic",
        key_frames: bool = False,
        max_pixels: int = DecodeLimits.max_pixels,
        max_seconds_to_scan: float = DecodeLimits.max_seconds_to_scan,
        max_decoded_pixels: float = DecodeLimits.max_decoded_pixels,
        max_cpu_seconds: float = DecodeLimits.max_cpu_seconds,
        **kwargs,
    ):
        refuse_unknown(kwargs, SAVED_WORDS, FrameSampler.field_names(), "FrameSampler: ")
        kwargs.pop("deadline", None)  # a bound of earlier versions
        size = square_side(size)
        words = [("sampling", sampling, SAMPLINGS), ("fit", fit, FITS), ("resample", resample, RESAMPLES)]
        for name, value, valid in words:
            if value not in valid:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(valid)}")
        if not isinstance(num_frames, (int, np.integer)) or isinstance(num_frames, bool):
            raise ValueError(f"num_frames={num_frames!r} must be a whole number")
        for name, value in [("num_frames", num_frames), ("size", size), ("fps", fps)]:
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be above 0" + (" and finite" if value == math.inf else ""))
        if not isinstance(getattr(torch, dtype, None), torch.dtype) or not getattr(torch, dtype).is_floating_point:
            raise ValueError(f"dtype={dtype!r} must name a floating-point torch dtype, e.g. 'float32' or 'bfloat16'")
        self.num_frames, self.size, self.sampling, self.fps = num_frames, size, sampling, fps
        self.image_mean, self.image_std, self.dtype = list(image_mean), list(image_std), dtype
        self.fit, self.resample, self.key_frames = fit, resample, bool(key_frames)
        self.max_pixels, self.max_seconds_to_scan = max_pixels, max_seconds_to_scan
        self.max_decoded_pixels, self.max_cpu_seconds = max_decoded_pixels, max_cpu_seconds
        super().__init__(**kwargs)

    @classmethod
    def field_names(cls) -> list[str]:
        """The settings, in order."""
        return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "kwargs")]

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved; as earlier versions wrote them where nothing newer is used."""
        unset = object()
        return {name: value for name, value in super().to_dict().items() if LATER.get(name, unset) != value}

    def replaced(self, **settings) -> "FrameSampler":
        """A sampler with some settings changed; this one stays as it is."""
        refuse_unknown(settings, self.field_names(), self.field_names(), "FrameSampler: ")
        return type(self)(**{name: settings.get(name, getattr(self, name)) for name in self.field_names()})

    def __call__(
        self,
        videos: Any,
        start: float | list[float | None] | None = None,
        end: float | list[float | None] | None = None,
        generator: torch.Generator | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool = True,
    ) -> BatchFeature:
        """One video, or several, to what the model takes.

        A video is a path, bytes, a binary file object, a dict with "bytes" and/or "path" (as `datasets.Video` gives); a
        decoder of torchcodec's kind; or frames: an array or tensor (F,H,W,3) or (F,3,H,W), a list of pictures or of
        such arrays, (frames, metadata) as transformers' `load_video` gives, {"frames": …, "fps": …}. Frames are uint8
        or floats in [0,1]. Several videos are a list of videos or an array of 5 axes.
        start, end: seconds on the video's own clock, the one `timestamps` is in; one value, or one per video.
        video_metadata: `fps` and, where frames were left out, `frames_indices` of frames in memory (transformers'
            `VideoMetadata`); one, or one per video. Without it frames count as 1/fps seconds apart.
        do_sample_frames: False takes every frame, and refuses a video of more than `num_frames`.

        -> pixel_values (F,3,size,size) normalised, zeros where padded; video_mask (F,) bool; timestamps (F,) float64
        seconds, 0 where padded. A list adds a leading axis.
        Raises VideoDecodeError; ValueError for wrong arguments.
        """
        videos, alone = listed(videos)
        rows = self.rows(videos, start, end, generator, video_metadata, do_sample_frames)
        return rows[0] if alone else stacked(rows)

    def rows(
        self, videos: list, start=None, end=None, generator=None, video_metadata=None, do_sample_frames=True
    ) -> list[BatchFeature]:
        """What a call gives, video by video, for a list that is known to be one of videos."""
        settings = {"start": start, "end": end, "metadata": video_metadata}
        each = zip(*(_one_each(value, len(videos), name) for name, value in settings.items()))
        return [
            self.pad(self.decode(video, first, last, generator, metadata, do_sample_frames))
            for video, (first, last, metadata) in zip(videos, each)
        ]

    def decode(
        self,
        video: Any,
        start: float | None = None,
        end: float | None = None,
        generator: torch.Generator | None = None,
        metadata: Any = None,
        do_sample_frames: bool = True,
    ) -> DecodedFrames:
        """The chosen frames of one video, resized and cropped, still uint8: 150 kB each at 224 pixels."""
        if start is not None and end is not None and not start < end:
            raise ValueError(f"start={start} must be before end={end} (seconds)")
        choose = partial(
            choose_frames,
            num_frames=self.num_frames,
            sampling=self.sampling,
            fps=self.fps,
            start=start,
            end=end,
            generator=generator,
        )
        if not do_sample_frames:
            choose = partial(every_frame, num_frames=self.num_frames, start=start, end=end)
        if is_decoder(video):
            return self._resized(DecoderReader(video).read(choose))
        held = held_frames(video, metadata, self.fps)
        if held is not None:
            return self._resized(_chosen_of(held, choose))
        with VideoReader(video, self.limits) as reader:
            frames, times = reader.read(choose, _Converter(self.fitted), start, end, self.key_frames)
        return DecodedFrames(torch.stack(frames), torch.from_numpy(times))

    def decode_windows(self, video: Any, windows: list[tuple[float, float]]) -> tuple[DecodedFrames, list[np.ndarray]]:
        """The frames that `decode` gives for windows (start, end) of one file, each decoded once, and every window's
        places among them. Raises VideoDecodeError where a window has none."""
        picks: list[np.ndarray] = []

        def choose(times: np.ndarray) -> np.ndarray:
            picks[:] = [
                choose_frames(times, self.num_frames, self.sampling, self.fps, start, end) for start, end in windows
            ]
            return np.unique(np.concatenate(picks))

        starts, ends = zip(*windows)
        with VideoReader(video, self.limits) as reader:
            frames, times = reader.read(choose, _Converter(self.fitted), min(starts), max(ends))
        if not all(len(pick) for pick in picks):
            raise VideoDecodeError(f"{video}: no frame in some window between {min(starts):g} s and {max(ends):g} s")
        together = np.unique(np.concatenate(picks))
        places = [np.searchsorted(together, pick) for pick in picks]
        return DecodedFrames(torch.stack(frames), torch.from_numpy(times)), places

    def decode_grid(self, video: Any, start: float | None = None, end: float | None = None) -> DecodedFrames:
        """A frame every 1/fps seconds of a window, however many that are."""
        many = self.replaced(num_frames=2**31 - 1, sampling="fps")
        return many.decode(video, start, end)

    @property
    def limits(self) -> DecodeLimits:
        return DecodeLimits(
            max_pixels=self.max_pixels,
            max_seconds_to_scan=self.max_seconds_to_scan,
            max_decoded_pixels=self.max_decoded_pixels,
            max_cpu_seconds=self.max_cpu_seconds,
        )

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """(x/255 − mean)/std per channel, in the sampler's dtype. uint8 (…,3,H,W) -> float (…,3,H,W)."""
        scale = 1 / (255 * torch.tensor(self.image_std, dtype=torch.float64))
        shift = -torch.tensor(self.image_mean, dtype=torch.float64) / torch.tensor(self.image_std, dtype=torch.float64)
        dtype = getattr(torch, self.dtype)
        scale, shift = scale.to(frames.device, dtype)[:, None, None], shift.to(frames.device, dtype)[:, None, None]
        return torch.addcmul(shift, frames.to(dtype), scale)

    def fitted(self, frame: torch.Tensor) -> torch.Tensor:
        """(3,H,W) uint8 -> (3,size,size) uint8."""
        if self.fit == "stretch":
            return resize(frame, self.size, self.size, self.resample)
        return resize_and_crop(frame, self.size, self.resample)

    def _resized(self, held: HeldFrames) -> DecodedFrames:
        frames = [self.fitted(frame_tensor(frame)) for frame in held.frames]
        return DecodedFrames(torch.stack(frames), torch.from_numpy(held.times))

    def pad(self, decoded: DecodedFrames) -> BatchFeature:
        """What a call returns, from frames that are already decoded (a cache holds them)."""
        count = len(decoded.frames)
        pixel_values = torch.zeros(self.num_frames, 3, self.size, self.size, dtype=getattr(torch, self.dtype))
        pixel_values[:count] = self.normalize(decoded.frames)
        timestamps = torch.zeros(self.num_frames, dtype=torch.float64)
        timestamps[:count] = decoded.timestamps
        mask = torch.arange(self.num_frames) < count
        return BatchFeature({"pixel_values": pixel_values, "video_mask": mask, "timestamps": timestamps})


def stacked(rows: list[BatchFeature]) -> BatchFeature:
    """The rows of several videos with a leading axis."""
    return BatchFeature({key: torch.stack([row[key] for row in rows]) for key in rows[0]})


def _chosen_of(held: HeldFrames, choose) -> HeldFrames:
    chosen = choose(held.times)
    if not len(chosen):
        raise VideoDecodeError(f"a video of {len(held.times)} frames has none in the chosen window; move the window")
    return HeldFrames([held.frames[index] for index in chosen.tolist()], held.times[chosen])


class _Converter:
    """av.VideoFrame -> (3,size,size) uint8 RGB, upright. One per video: it keeps swscale's tables."""

    def __init__(self, fitted: Callable[[torch.Tensor], torch.Tensor]):
        self.fitted = fitted
        self.reformatter = VideoReformatter()

    def __call__(self, frame) -> torch.Tensor:
        rgb = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        # (H,W,3) seen as (3,H,W): channels-last in memory, the layout for which torch's uint8 resize is fast
        image = torch.from_numpy(rgb).permute(2, 0, 1)
        quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
        if quarter_turns:
            image = torch.rot90(image, quarter_turns, (1, 2))
        return self.fitted(image)


def _one_each(value, count: int, name: str) -> list:
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {name} for {count} videos; give one value, or one per video")
    return list(value)


FrameSampler.register_for_auto_class()
