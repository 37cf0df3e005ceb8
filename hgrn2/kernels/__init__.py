"""HGRN2's operator in Triton. Import `hgrn2.kernels.ops`; this package needs triton."""
