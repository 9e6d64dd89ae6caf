"""The student: the teacher with fake-quant nodes, and its quantization parameters as inputs."""
