"""Annotation files and folders of videos -> `datasets.Dataset`, one small module per dataset."""
