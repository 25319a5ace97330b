"""One `DeviceMesh` API with one meaning on every PyTorch release from 2.6 on."""
