"""One `DeviceMesh` API with one meaning on every PyTorch release from 2.6 on, and a framework's mesh layer on top."""
