"""`SentenceTransformer(repository, trust_remote_code=True)`: sentences and videos as single vectors.

A DMAE score compares every word with every frame, which no single vector can hold: cosines of these vectors are the
model's own score only for `interaction="mean"` (zero-shot CLIP). For the others they are a first, coarse look, which is
said when the model is loaded; `model[0].score(sentences, videos)` is exact.
"""

import logging
from typing import Any

import torch
from sentence_transformers.base.modality import infer_batch_modality  # pyright: ignore[reportMissingImports]
from sentence_transformers.base.modules import InputModule  # pyright: ignore[reportMissingImports]
from transformers import AutoModel, AutoProcessor

logger = logging.getLogger(__name__)


class TextVideoModule(InputModule):
    """The model and its processor as the one module of a SentenceTransformer."""

    def __init__(self, model, processor):
        super().__init__()
        self.model, self.processor = model, processor
        if model.config.interaction != "mean":
            logger.warning(
                "single vectors of a DMAE model rank worse than its own score (interaction=%r), which compares words "
                "with frames; model[0].score(sentences, videos) is exact",
                model.config.interaction,
            )

    @property
    def modalities(self) -> list[Any]:
        return ["text", "video"]

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def preprocess(self, inputs, prompt: str | None = None, **kwargs) -> dict:
        """Sentences, or videos as the processor takes them (paths, bytes, arrays), all of one kind."""
        rows: list[Any] = list(inputs)
        if infer_batch_modality(rows, supported_modalities=self.modalities) == "video":
            return dict(self.processor(videos=rows, return_tensors="pt"))
        texts = self._prepend_prompt(rows, prompt) if prompt else rows
        return dict(self.processor(text=texts, return_tensors="pt"))

    def forward(self, features: dict, **kwargs) -> dict:
        """Adds `sentence_embedding` (B,D), unit length: the sentence's, or the direction of the video's mean frame."""
        if "input_ids" in features:
            names = ("input_ids", "attention_mask", "word_mask", "word_weights")
            embedding = self.model.get_text_features(**{name: features[name] for name in names if name in features})[0]
        else:
            video = self.model.get_video_features(features["pixel_values"], features["video_mask"])
            embedding = (video.video_embeds * video.video_mask[..., None]).sum(1)
        return {**features, "sentence_embedding": torch.nn.functional.normalize(embedding.float(), dim=-1)}

    @torch.inference_mode()
    def score(self, sentences: list[str], videos: list, batch_size: int = 8) -> torch.Tensor:
        """(sentences, videos) exact scores of the model, not multiplied by its logit scale."""
        device = self.model.device
        words = self.processor(text=list(sentences), return_tensors="pt").to(device)
        columns = []
        for at in range(0, len(videos), batch_size):
            frames = self.processor(videos=list(videos[at : at + batch_size]), return_tensors="pt").to(device)
            columns.append(self.model(**words, **frames, return_loss=False).logits_per_text)
        return torch.cat(columns, 1).float() / self.model.logit_scale.exp().float()

    def get_embedding_dimension(self) -> int:
        return self.model.config.projection_dim

    def save(self, output_path: str, *args, safe_serialization: bool = True, **kwargs) -> None:
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", token=None, cache_folder=None, revision=None,
             local_files_only: bool = False, trust_remote_code: bool = False, **kwargs):  # fmt: skip
        """Both halves by remote code, as `AutoModel` and `AutoProcessor` load them."""
        hub = {"token": token, "cache_dir": cache_folder, "revision": revision, "local_files_only": local_files_only}
        hub = {name: value for name, value in hub.items() if value} | {"trust_remote_code": trust_remote_code}
        model = AutoModel.from_pretrained(model_name_or_path, **hub).eval()
        return cls(model, AutoProcessor.from_pretrained(model_name_or_path, **hub))
