"""Imported before anything else where ranks are forked from: what is imported next sees no GPU."""

import os

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
