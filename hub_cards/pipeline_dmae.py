"""`pipeline("text-video-retrieval")` ranks videos for sentences; `pipeline("feature-extraction")` gives embeddings."""

import os
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

TASK, FEATURES = "text-video-retrieval", "feature-extraction"
ONE_VIDEO = (str, os.PathLike, bytes, dict)  # given alone; all else is several videos


def custom_pipelines() -> dict[str, dict]:
    """What a model's configuration says, so that `pipeline(task, …, trust_remote_code=True)` finds these classes."""
    names = {TASK: "TextVideoRetrievalPipeline", FEATURES: "TextVideoFeatureExtractionPipeline"}
    return {
        task: {"impl": f"pipeline_dmae.{name}", "pt": ["AutoModel"], "type": "multimodal"}
        for task, name in names.items()
    }


class ProcessorPipeline(Pipeline):
    """What both pipelines share: the model's own processor, and folders that load again as a pipeline."""

    model: Any  # the classes that travel with the model, loaded as remote code
    processor: Any
    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def save_pretrained(self, save_directory: str, **kwargs):
        """Model, processor and this file: a folder that `pipeline(task, folder, trust_remote_code=True)` reads."""
        self.model.config.custom_pipelines = custom_pipelines()
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        custom_object_save(self, save_directory)


class TextVideoRetrievalPipeline(ProcessorPipeline):
    """Ranks videos for sentences.

        search = pipeline("text-video-retrieval", model=repository, trust_remote_code=True)
        search("a dog runs", videos=["dog.mp4", "cat.mp4"])
        # [{"index": 0, "video": "dog.mp4", "score": 0.31}, {"index": 1, "video": "cat.mp4", "score": 0.12}]

    One sentence gives one list, best first; a list of sentences gives a list of lists. `score` is the model's
    similarity, not multiplied by its logit scale; `index` is the place in `videos`. Equal scores keep the order
    of `videos`. `top_k` keeps the best k. `batch_size` (8) videos are decoded and encoded at a time. `ValueError`
    for no sentence, no video or a file that cannot be decoded.
    """

    def __call__(self, text: str | list[str], videos: str | list[str], top_k: int | None = None, batch_size: int = 8):
        texts = [text] if isinstance(text, str) else list(text)
        videos = [videos] if isinstance(videos, ONE_VIDEO) else list(videos)
        if not texts or not videos:
            raise ValueError(f"got {len(texts)} sentences and {len(videos)} videos; both are needed")
        inputs = {"texts": texts, "videos": videos}
        ranked: Any = super().__call__(inputs, videos=videos, top_k=top_k, videos_per_step=batch_size)
        return ranked[0] if isinstance(text, str) else ranked

    def _sanitize_parameters(self, videos=None, top_k=None, videos_per_step=8):
        return {"videos_per_step": videos_per_step}, {}, {"videos": videos, "top_k": top_k}

    def preprocess(self, inputs: dict, videos_per_step: int) -> dict:
        """Sentences -> one batch; videos -> batches of `videos_per_step`, decoded when they are needed."""
        words = self.processor(text=inputs["texts"], return_tensors="pt")
        videos = inputs["videos"]
        steps = [videos[at : at + videos_per_step] for at in range(0, len(videos), videos_per_step)]
        return {"words": words, "steps": steps}

    def _forward(self, inputs: dict) -> dict:
        words, columns = inputs["words"], []
        for videos in inputs["steps"]:
            frames = self.processor(videos=videos, return_tensors="pt").to(self.device)
            columns.append(self.model(**words, **frames, return_loss=False).logits_per_text)
        return {"scores": torch.cat(columns, dim=1).float() / self.model.logit_scale.exp().float()}

    def postprocess(self, outputs: dict, videos: list, top_k: int | None) -> list[list[dict]]:
        scores, order = outputs["scores"].sort(dim=1, descending=True, stable=True)
        return [
            [{"index": i, "video": videos[i], "score": score} for i, score in zip(row, values)][:top_k]
            for row, values in zip(order.tolist(), scores.tolist())
        ]


class TextVideoFeatureExtractionPipeline(ProcessorPipeline):
    """Embeddings in the shape of transformers' own `feature-extraction`: one row per word piece, or per frame.

        extract = pipeline("feature-extraction", model=repository, trust_remote_code=True)
        extract("a dog runs")              # [[[…], …]]: 1 x words x width
        extract(videos="dog.mp4")          # [[[…], …]]: 1 x frames x width, after visual attention
        extract(["a dog", "a cat"])        # one of them for each
        extract("a dog runs", pooled=True) # [[…]]: 1 x width, the sentence's embedding; of a video the mean frame

    Without padding, unit vectors but for attended frames. `return_tensors=True` gives tensors. The model's score needs
    weights besides; `pipeline("text-video-retrieval")` and the model itself compute it. `ValueError` unless exactly
    one of texts and videos is given.
    """

    def __call__(self, texts=None, videos=None, **options):
        if (texts is None) == (videos is None):
            raise ValueError("give sentences, or videos=…: one of the two")
        items, key = (texts, "text") if videos is None else (videos, "videos")
        many = isinstance(items, (list, tuple))
        found: Any = super().__call__([{key: item} for item in (items if many else [items])], **options)
        return found if many else found[0]

    def _sanitize_parameters(self, pooled=False, return_tensors=False):
        return {}, {}, {"pooled": pooled, "return_tensors": return_tensors}

    def preprocess(self, inputs: dict):
        return self.processor(**inputs, return_tensors="pt")

    def _forward(self, inputs) -> dict:
        if "input_ids" in inputs:
            text = self.model.get_text_features(**inputs)
            return {"rows": text.word_embeds, "mask": text.word_mask, "pooled": text.sentence_embeds}
        video = self.model.get_video_features(**inputs)
        mean = (video.attended_embeds * video.frame_weights[..., None]).sum(1)
        return {
            "rows": video.attended_embeds,
            "mask": video.video_mask,
            "pooled": torch.nn.functional.normalize(mean, dim=-1),
        }

    def postprocess(self, outputs: dict, pooled: bool, return_tensors: bool):
        rows = outputs["pooled"] if pooled else outputs["rows"][outputs["mask"]][None]
        return rows.float() if return_tensors else rows.float().tolist()
