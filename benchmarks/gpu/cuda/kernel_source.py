"""CUDA C of small deterministic graphs with the tensors of the three real ones.

Every operation is IEEE-exact and in a fixed order, so numpy gives the same bits (`kernel_graphs`), provided the
compiler does not contract a multiplication and an addition into one rounding. The tests compile the same text with a C
compiler, with other macros.
"""

WIDTH = 4  # numbers of `tint` per channel

CUDA_MACROS = """
#define KERNEL extern "C" __global__ void
#define EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)
#define CYCLES clock64()
"""

SOURCE = """
// Spin, so that the host runs ahead of the device.
KERNEL spin(int n, int cycles, long long* sink) {
    EACH(i, n) {
        long long start = CYCLES, now = start;
        while (now - start < cycles) now = CYCLES;
        sink[i] = now;
    }
}

KERNEL move(int n, const float* source, float* target) {
    EACH(i, n) target[i] = source[i];
}

// Write to an address that does not exist: the context is lost.
KERNEL crash(int n, float* target) {
    EACH(i, n) target[i] = 1.0f;
}

// ids [B, L], lengths [B] -> [B, L, D]
KERNEL encode(int n, int length, int dim, const long long* ids, const long long* lengths, float* out) {
    EACH(i, n) {
        int d = i % dim, token = i / dim, row = token / length;
        float id = (float)(ids[token] % 97) * 0.03125f;
        float place = (float)(d % 31) * 0.0625f;
        out[i] = id + place + (token % length < lengths[row] ? 0.5f : -0.25f);
    }
}

// latents [B, C, h, w] -> velocity of the same shape; tint [C, 4]
KERNEL velocity(int n, int sample, int channel, int prompt, int table, const float* latents, const float* prompt_embeds,
                const float* rope_cos, const float* rope_sin, const float* tint, float* out) {
    EACH(i, n) {
        int row = i / sample, at = i % sample;
        float x = latents[i];
        float size = x < 0.0f ? -x : x;
        float next = latents[row * sample + (at + 1) % sample];
        float condition = prompt_embeds[row * prompt + at % prompt] * tint[at / channel * 4 + at % 4];
        float position = rope_cos[at % table] + rope_sin[at % table];
        out[i] = x / (1.0f + size) + 0.25f * next + condition + 0.125f * position;
    }
}

KERNEL euler(int n, int sample, const float* latents, const float* sigma, const float* sigma_next,
             const float* velocity, float* out) {
    EACH(i, n) out[i] = latents[i] + (sigma_next[i / sample] - sigma[i / sample]) * velocity[i];
}

// latents [C, h, w] -> [8h, 8w, 3]
KERNEL decode(int n, int height, int width, const float* latents, float* out) {
    EACH(i, n) {
        int c = i % 3, x = i / 3 % (8 * width), y = i / 3 / (8 * width);
        float value = latents[(c * height + y / 8) * width + x / 8];
        float size = value < 0.0f ? -value : value;
        out[i] = size * 64.0f < 255.0f ? size * 64.0f : 255.0f;
    }
}
"""
