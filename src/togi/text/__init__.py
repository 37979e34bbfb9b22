"""Text and tokens: chat templates as data, rendering to ids with a loss mask, languages and writing systems, and the
similarity of texts."""
