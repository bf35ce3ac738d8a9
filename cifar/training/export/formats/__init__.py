"""The files of a version for other programs: ONNX, Keras, and the requests that warm up TensorFlow Serving."""
