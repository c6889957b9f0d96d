"""KTAP: a teacher's embeddings and logits in a key-value store, read by the student; see README.md."""
