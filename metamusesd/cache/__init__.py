import os

# DANGER: onnxruntime reports its use to its maker, and keeps an identifier of this machine in ~/.cache, unless it is
# told not to before it is imported. Nothing here phones home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
