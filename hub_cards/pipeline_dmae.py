"""`pipeline("text-video-retrieval")`: rank videos by how well they fit each sentence."""

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

TASK = "text-video-retrieval"


class TextVideoRetrievalPipeline(Pipeline):
    """Ranks videos for sentences.

        search = pipeline("text-video-retrieval", model=repository, trust_remote_code=True)
        search("a dog runs", videos=["dog.mp4", "cat.mp4"])
        # [{"index": 0, "video": "dog.mp4", "score": 0.31}, {"index": 1, "video": "cat.mp4", "score": 0.12}]

    One sentence gives one list, best first; a list of sentences gives a list of lists. `score` is the model's
    similarity, not multiplied by its logit scale; `index` is the place in `videos`. Equal scores keep the order
    of `videos`. `top_k` keeps the best k. `batch_size` (8) videos are decoded and encoded at a time. `ValueError`
    for no sentence, no video or a file that cannot be decoded.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __call__(self, text: str | list[str], videos: str | list[str], top_k: int | None = None, batch_size: int = 8):
        texts = [text] if isinstance(text, str) else list(text)
        videos = [videos] if isinstance(videos, str) else list(videos)
        if not texts or not videos:
            raise ValueError(f"got {len(texts)} sentences and {len(videos)} videos; both are needed")
        inputs = {"texts": texts, "videos": videos}
        ranked = super().__call__(inputs, videos=videos, top_k=top_k, videos_per_step=batch_size)
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

    def save_pretrained(self, save_directory: str, **kwargs):
        """Model, processor and this file: a folder that `pipeline(model=folder, trust_remote_code=True)` reads."""
        entry = {"impl": f"pipeline_dmae.{type(self).__name__}", "pt": ["AutoModel"], "type": "multimodal"}
        self.model.config.custom_pipelines = {TASK: entry}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        custom_object_save(self, save_directory)
