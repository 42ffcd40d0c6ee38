"""Turns a folder of photos into an image classifier by transfer learning."""
