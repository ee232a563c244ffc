"""A small Gradio app, served where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say."""

import gradio

gradio.Interface(fn=lambda text: text, inputs="text", outputs="text").launch()
