"""CUDA C of small deterministic graphs with the tensors of the real ones.

Every operation is IEEE-exact and in a fixed order, so numpy gives the same bits (`kernel_graphs`), provided the
compiler does not contract a multiplication and an addition into one rounding. The tests compile the same text with a C
compiler, with other macros.
"""

WIDTH = 4  # numbers of `tint` per channel
SUMS = 1024  # partial sums of a mean, each by one thread

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

// A normalization above 0 scales every change, without the norms of the real graph.
KERNEL guide(int n, int sample, const float* positive, const float* negative, const float* before, const float* scale,
             const float* normalization, float* out) {
    EACH(i, n) {
        float bound = normalization[i / sample];
        float guided = positive[i] + scale[i / sample] * (positive[i] - negative[i]);
        out[i] = bound > 0.0f ? before[i] + bound * (guided - before[i]) : guided;
    }
}

// latents [C, h, w] -> [8h, 8w, 3], not clipped
KERNEL decode(int n, int height, int width, const float* latents, float* out) {
    EACH(i, n) {
        int c = i % 3, x = i / 3 % (8 * width), y = i / 3 / (8 * width);
        float value = latents[(c * height + y / 8) * width + x / 8];
        out[i] = (value < 0.0f ? -value : value) * 64.0f;
    }
}

KERNEL quantize(int n, const float* values, unsigned char* image) {
    EACH(i, n) image[i] = (unsigned char)((values[i] < 255.0f ? values[i] : 255.0f) + 0.5f);
}

// latents [count] -> n partial sums of what `decode` makes of them
KERNEL sum(int n, int count, const float* latents, float* out) {
    EACH(i, n) {
        float total = 0.0f;
        for (int at = i; at < count; at += n) total += (latents[at] < 0.0f ? -latents[at] : latents[at]) * 64.0f;
        out[i] = total;
    }
}

KERNEL mean(int n, int sums, int count, const float* partial, float* out) {
    EACH(i, n) {
        float total = 0.0f;
        for (int at = 0; at < sums; ++at) total += partial[at];
        out[i] = total / (float)count;
    }
}
"""
