"""transformers' own `ModelTesterMixin` and `ProcessorTesterMixin` on this model and processor.

Not collected here: `test_transformers_testers.py` lays it into transformers' tests of the installed version.
"""

import unittest

import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor
from dmae.processing.frames_dmae import FrameSampler
from dmae.training.tokenizer import train_bpe_tokenizer

from ...test_modeling_common import ModelTesterMixin
from ...test_processing_common import ProcessorTesterMixin


class DMAEModelTester:
    batch_size, seq_length, num_hidden_layers, is_training = 3, 16, 2, True

    def get_config(self):
        return DMAEConfig.tiny(temporal_init="random")

    def prepare_config_and_inputs_for_common(self):
        torch.manual_seed(0)
        input_ids = torch.randint(2, 120, (3, 16))
        input_ids[:, 0], input_ids[:, -1] = 0, 1
        frames = torch.randn(3, 4, 3, 32, 32)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": frames}
        return self.get_config(), inputs


class DMAEModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (DMAEForTextVideoRetrieval,)
    test_resize_embeddings = False
    has_attentions = False  # as for CLIP: its towers have them, and are tested as classes of their own

    def setUp(self):
        self.model_tester = DMAEModelTester()

    def test_hidden_states_output(self):
        self.skipTest("as for CLIP: of the towers, under their outputs (`text_model_output`, `vision_model_output`)")

    def test_retain_grad_hidden_states_attentions(self):
        self.skipTest("as for CLIP: of the towers")


class DMAEProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = DMAEProcessor
    text_input_name, videos_input_name = "input_ids", "pixel_values"

    @classmethod
    def _setup_tokenizer(cls):
        return train_bpe_tokenizer(["lower newer", "upper older longer string"] * 9, 600, max_length=200)

    @classmethod
    def _setup_feature_extractor(cls):
        return FrameSampler(num_frames=8, size=32)
