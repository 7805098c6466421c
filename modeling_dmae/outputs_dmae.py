"""What the model returns, with shapes. B texts (Bt) and videos (Bv), T text positions, F frames, P visual tokens."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput


@dataclass
class DMAEOutput(ModelOutput):
    """Output of [`DMAEForTextVideoRetrieval`].

    loss: scalar, contrastive_loss + partial_weight · partial_order_loss; None without matched pairs.
    contrastive_loss: scalar, InfoNCE or NegNCE (Eq. 4-9).
    partial_order_loss: scalar, the sum of the next three (Eq. 18).
    sentence_video_loss: scalar, (t_cls,v_h) → (t_cls,v_h^p).
    words_video_loss: scalar, (t_g,v_h) → (t_g,v_h^p).
    words_masked_loss: scalar, (t_g,v_h) → (t_g^p,v_h).
    logits_per_text: (Bt,Bv), scale · similarity. logits_per_video: (Bv,Bt), its transpose.
    text_embeds: (Bt,D) unit sentences. word_embeds: (Bt,T,D) unit. word_mask: (Bt,T) bool.
    video_embeds: (Bv,F,D) unit. attended_embeds: (Bv,F,D). video_mask: (Bv,F) bool.
    word_weights: (Bt,T) W_TA (and fc_text under WTI). frame_weights: (Bv,F) c. Both sum to 1 over their mask.

    On request (`output_explanation=True`), what explains a match:
    word_frame_similarities: (Bt,Bv,T,F), <word, attended frame>, 0 at padding.
    masked_words: (B,T) bool and masked_visual_tokens: (B,P) bool, what TPM hides of matched pairs; None without TPM.
    text_model_output, vision_model_output: hidden_states and attentions of the towers, those asked for.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    partial_order_loss: Tensor | None = None
    sentence_video_loss: Tensor | None = None
    words_video_loss: Tensor | None = None
    words_masked_loss: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_video: Tensor | None = None
    text_embeds: Tensor | None = None
    word_embeds: Tensor | None = None
    word_weights: Tensor | None = None
    word_mask: Tensor | None = None
    video_embeds: Tensor | None = None
    attended_embeds: Tensor | None = None
    frame_weights: Tensor | None = None
    video_mask: Tensor | None = None
    word_frame_similarities: Tensor | None = None
    masked_words: Tensor | None = None
    masked_visual_tokens: Tensor | None = None
    text_model_output: BaseModelOutput | None = None
    vision_model_output: BaseModelOutput | None = None
