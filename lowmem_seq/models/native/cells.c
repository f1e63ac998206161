/* The cells of BiLSTM2D's LSTMs, one step of all directions at a time: everything of a step but its matrix products.
 *
 * lstm_native.py says what is computed and calls this by ctypes; hatch_build.py compiles it, once for each
 * instruction set. Plain C11 whose loops compilers turn into vector instructions; x86's own are used for float16 alone.
 * Numbers are 32 bits wide here; products are bfloat16 or float, what is kept float16 or float.
 *
 * Shapes: P directions, n = images * sequences, D units, T steps.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* No two arrays of a loop over units overlap. */
#if defined(_MSC_VER)
#define EXPORTED __declspec(dllexport)
#define INDEPENDENT __pragma(loop(ivdep))
#elif defined(__clang__)
#define EXPORTED __attribute__((visibility("default")))
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define EXPORTED __attribute__((visibility("default")))
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

#define MOST_DIRECTIONS 4
#define GATES 4
#define BIAS_COLUMNS 8

/* Where a direction finds its tokens, in bytes: at its step t that of (image, sequence) lies at
 * first + t step + image image + sequence sequence. Backward directions start at their last token. */
typedef struct {
    char *first;
    int64_t step, image, sequence;
} Place;

typedef struct {
    int64_t directions, steps, images, sequences, width;
    int64_t token_bytes;           /* of x */
    int64_t row_bytes;             /* of inputs: x, 8 for the biases, h */
    Place x[MOST_DIRECTIONS];
    Place out[MOST_DIRECTIONS];
    char *inputs;                  /* (P, n, row) */
    const void *sums;              /* (P, n, 4D), the products: preactivations of i, f, o, and twice that of g */
    float *state;                  /* (P, n, D) */
    void *gates;                   /* (T, P, n, 4D), what is kept; or null */
    float *row;                    /* (4D,), scratch */
} Forward;

typedef struct {
    int64_t directions, steps, images, sequences, width;
    Place out[MOST_DIRECTIONS];
    Place dout[MOST_DIRECTIONS];
    Place da_by_token[MOST_DIRECTIONS];
    const void *gates;             /* (T, P, n, 4D) */
    float *states;                 /* (T, P, n, D) */
    float *no_state;               /* (D,), zeros: before the first step */
    void *before;                  /* (P, T - 1, n, D), h before each step but the first */
    void *da;                      /* (P, T - 1, n, 4D), of each step but the first */
    void *da_of_step;              /* (P, n, 4D) */
    void *dh;                      /* (P, n, D), what the step after wants */
    float *dstate;                 /* (P, n, D), in the state */
    float *db;                     /* (P, 4D), sums of da */
    float *row;                    /* (4D,), scratch */
} Backward;

/* The weights of all directions, in nn.LSTM's order and 32 bits, and their gradients. */
typedef struct {
    int64_t directions, width, channels; /* P, D, C */
    float *w[MOST_DIRECTIONS];           /* (4D, C) */
    float *u[MOST_DIRECTIONS];           /* (4D, D) */
    float *b[MOST_DIRECTIONS];           /* (4D,) */
    float *b_too[MOST_DIRECTIONS];
} Weights;

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* All conversions round to the nearest, ties to even; NaNs stay such. */

static inline float load_bfloat16(uint16_t x) { return float_of((uint32_t)x << 16); }

static inline uint16_t store_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0u : rounded);
}

static inline float load_float16(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, rest = x & 0x7fffu;
    uint32_t normal = (rest << 13) + (112u << 23);
    /* under 2^-14, in units of 2^-24: 0.5 + x has them as its last bits */
    uint32_t small = bits_of(float_of(bits_of(0.5f) + rest) - 0.5f);
    uint32_t endless = (rest << 13) + (224u << 23);
    return float_of(sign | (rest < 0x400u ? small : rest < 0x7c00u ? normal : endless));
}

static inline uint16_t store_float16(float x) {
    uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    uint32_t normal = (rest - (112u << 23) + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    uint32_t small = bits_of(float_of(rest) + 0.5f) - bits_of(0.5f);
    uint32_t found = rest < (113u << 23) ? small : normal;
    found = rest >= 0x477ff000u ? 0x7c00u : found; /* 65520, half way to what would come next */
    found = rest > 0x7f800000u ? 0x7e00u : found;
    return (uint16_t)(sign | found);
}

static inline void recall_float16(int64_t count, const uint16_t *kept, float *gates) {
    int64_t j = 0;
#if defined(__AVX512F__)
    for (; j + 16 <= count; j += 16)
        _mm512_storeu_ps(gates + j, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(kept + j))));
#elif defined(__AVX2__)
    for (; j + 8 <= count; j += 8)
        _mm256_storeu_ps(gates + j, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(kept + j))));
#endif
    for (; j < count; j++) gates[j] = load_float16(kept[j]);
}

static inline void keep_float16(int64_t count, const float *gates, uint16_t *kept) {
    int64_t j = 0;
#if defined(__AVX512F__)
    for (; j + 16 <= count; j += 16)
        _mm256_storeu_si256((__m256i *)(kept + j), _mm512_cvtps_ph(_mm512_loadu_ps(gates + j), 0));
#elif defined(__AVX2__)
    for (; j + 8 <= count; j += 8)
        _mm_storeu_si128((__m128i *)(kept + j), _mm256_cvtps_ph(_mm256_loadu_ps(gates + j), 0));
#endif
    for (; j < count; j++) kept[j] = store_float16(gates[j]);
}

static inline float load_float(float x) { return x; }
static inline float store_float(float x) { return x; }

static inline void recall_float(int64_t count, const float *kept, float *gates) {
    memcpy(gates, kept, sizeof(float) * (size_t)count);
}

static inline void keep_float(int64_t count, const float *gates, float *kept) {
    memcpy(kept, gates, sizeof(float) * (size_t)count);
}

/* exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), x = n log(2) + r, by the Taylor polynomial of degree 7; right to about
 * 1e-7 of it, also near 0. Adding 1.5 * 2^23 leaves n, rounded, in the last bits. */
typedef struct {
    float power, rest; /* 2^n, exp(r) - 1 */
} Exponential;

static inline Exponential exponential(float x) {
    x = x < -87.f ? -87.f : x;
    x = x > 87.f ? 87.f : x;
    float shifted = x * 1.44269504f + 12582912.f;
    float n = shifted - 12582912.f;
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float q = 1.f / 720.f + r * (1.f / 5040.f);
    q = 1.f / 120.f + r * q;
    q = 1.f / 24.f + r * q;
    q = 1.f / 6.f + r * q;
    q = 0.5f + r * q;
    Exponential found = {float_of((bits_of(shifted) << 23) + (127u << 23)), r + r * r * q};
    return found;
}

static inline float sigmoid(float x) {
    Exponential e = exponential(-x);
    return 1.f / (1.f + (e.power + e.power * e.rest));
}

/* tanh(x / 2) */
static inline float tanh_of_half(float x) {
    Exponential e = exponential(x);
    float less_one = e.power * e.rest + (e.power - 1.f);
    return less_one / (less_one + 2.f);
}

static inline char *token(const Place *place, int64_t step, int64_t image, int64_t sequence) {
    return place->first + step * place->step + image * place->image + sequence * place->sequence;
}

#define TEXT(value) #value
#define TEXT_OF(value) TEXT(value)
#define JOINED(name, kind, set) name##_##kind##_##set
#define EXPANDED(name, kind, set) JOINED(name, kind, set)
#define NAMED(name) EXPANDED(name, KIND, SET)

#define KIND bf16
#define PRODUCT uint16_t
#define LOAD load_bfloat16
#define STORE store_bfloat16
#define KEPT uint16_t
#define KEEP keep_float16
#define RECALL recall_float16
#include "steps.h"

#define KIND fp32
#define PRODUCT float
#define LOAD load_float
#define STORE store_float
#define KEPT float
#define KEEP keep_float
#define RECALL recall_float
#include "steps.h"

/* For tests. */
EXPORTED void EXPANDED(keep, float16, SET)(int64_t count, const float *x, uint16_t *kept) { keep_float16(count, x, kept); }
EXPORTED void EXPANDED(recall, float16, SET)(int64_t count, const uint16_t *kept, float *x) {
    recall_float16(count, kept, x);
}

/* Of these sources (compiled.py), and what compiled them. */
EXPORTED uint64_t EXPANDED(fingerprint, of, SET)(void) { return FINGERPRINT; }

EXPORTED const char *EXPANDED(compiler, of, SET)(void) {
#if defined(_MSC_VER)
    return "MSVC " TEXT_OF(_MSC_FULL_VER);
#elif defined(__clang__)
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}
