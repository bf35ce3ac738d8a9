"""Everything that relies on how Gradio works inside."""
