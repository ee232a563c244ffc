"""Writes a model of a few kilobytes that llama-server loads: one layer, random weights, a handful of words."""

import sys

import gguf
import numpy

WIDTH, FEED, HEADS, CONTEXT = 32, 64, 2, 128
random = numpy.random.default_rng(1)


def weights(*shape):
    return random.standard_normal(shape, dtype=numpy.float32)


writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_block_count(1)
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(FEED)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // HEADS)

kind = gguf.TokenType
words = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
words += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
words += [("\u2581a", kind.NORMAL), ("\u2581b", kind.NORMAL)]
writer.add_tokenizer_model("llama")
writer.add_token_list([word for word, _ in words])
writer.add_token_scores([0.0] * len(words))
writer.add_token_types([int(kind) for _, kind in words])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)

writer.add_tensor("token_embd.weight", weights(len(words), WIDTH))
writer.add_tensor("output_norm.weight", weights(WIDTH))
writer.add_tensor("output.weight", weights(len(words), WIDTH))
for name, shape in {
    "attn_norm": (WIDTH,),
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (FEED, WIDTH),
    "ffn_up": (FEED, WIDTH),
    "ffn_down": (WIDTH, FEED),
}.items():
    writer.add_tensor(f"blk.0.{name}.weight", weights(*shape))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
