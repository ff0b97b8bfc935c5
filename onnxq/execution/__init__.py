"""Running models: sessions, networks in part, memory, several processes. Nothing else imports onnxruntime."""
