# docker build -t onnxq . && docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" onnxq quantize in.onnx out.onnx --calib calib
FROM python:3.11-slim

COPY . /source
RUN pip install --no-cache-dir /source && rm -rf /source

# Any user may run it: results then belong to whoever runs it.
WORKDIR /data
USER 65534
ENTRYPOINT ["onnxq"]
CMD ["--help"]
