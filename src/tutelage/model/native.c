/* One forward of the decoder for the engine, on a CPU, in float32: the same mathematics as transformer.py without
 * autograd, in one call; and, at the end, what lies between the products of training. Weights lie in panels of PANEL outputs, so that a product keeps a tile of results in registers
 * and reads every weight once; what lies between products never leaves the cache.
 *
 * Every number is made by the same operations in the same order however many tokens come along: a sequence's results
 * depend on nothing but itself.
 *
 * Built by library.py for the processor at hand; vectors are the compiler's own, so AVX-512, AVX2 and NEON share a text.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12 /* rows of a tile: 24 of 32 registers hold sums */
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6 /* 12 of 16 */
#else
#define LANES 4
#define ROWS 8 /* 16 of 32 */
#endif
#define PANEL (2 * LANES)
#define INLINE static inline __attribute__((always_inline))
#define UP(size, step) (((size) + (step) - 1) / (step) * (step))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

int lanes(void) { return LANES; }

/* ---------------------------------------------------------------------------------------------------- small things */

INLINE vec all(float x) { return x - (vec){0}; }

INLINE float sum(vec x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float most(vec x) {
    float found = x[0];
    for (int i = 1; i < LANES; i++) found = x[i] > found ? x[i] : found;
    return found;
}

INLINE vec larger(vec a, vec b) {
    const ints which = a > b;
    return (vec)(((ints)a & which) | ((ints)b & ~which));
}

INLINE vec widened(const int8_t *x) {
#if defined(__AVX512F__) /* compilers do not find these instructions by themselves */
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)x)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(x)));
#else
    return __builtin_convertvector(*(bytes *)x, vec);
#endif
}

/* e^x within 2 ulp between -87 and 88, and what it is there beyond. Cephes' polynomial. */
INLINE vec exponential(vec x) {
    x = -larger(-larger(x, all(-87.0f)), all(-88.0f));
    vec whole = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer in the low bits */
    ints power = (ints)whole << 23;
    whole -= 12582912.0f;
    x -= whole * 0.693359375f;
    x -= whole * -2.12194440e-4f;
    vec y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    return (vec)((ints)y + power);
}

/* out = x / rms(x) * weight; `out` may be `x`. */
static void normalise(const float *x, const float *weight, float *out, int width, float eps) {
    vec squares = {0};
    int i = 0;
    for (; i + LANES <= width; i += LANES) squares += *(vec *)(x + i) * *(vec *)(x + i);
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    float scale = 1.0f / sqrtf(total / width + eps);
    for (i = 0; i + LANES <= width; i += LANES) *(vec *)(out + i) = *(vec *)(x + i) * scale * *(vec *)(weight + i);
    for (; i < width; i++) out[i] = x[i] * scale * weight[i];
}

/* -------------------------------------------------------------------------------------------------------- products */

typedef struct {
    const void *panels;   /* [outputs / PANEL][inputs][PANEL], float or int8 */
    const float *scales;  /* [outputs]: int8 weights are multiplied with these; NULL: float weights */
    const float *bias;    /* [outputs] or NULL */
    int32_t inputs, outputs; /* outputs: a multiple of PANEL */
} Matrix;

enum { STORE, ADD, SWIGLU };

/* What becomes of a tile of sums. */
static void finish(const int kind, const Matrix *m, int rows, int vectors, int panel, const vec *sums, float *out,
                   int64_t out_step) {
    for (int r = 0; r < rows; r++) {
        float *to = out + r * out_step + (int64_t)panel * (kind == SWIGLU ? LANES : PANEL);
        vec gate = {0};
        for (int c = 0; c < vectors; c++) {
            const int column = panel * PANEL + c * LANES;
            vec x = sums[r * vectors + c];
            if (m->scales) x *= *(vec *)(m->scales + column);
            if (m->bias) x += *(vec *)(m->bias + column);
            if (kind == STORE) *(vec *)(to + c * LANES) = x;
            else if (kind == ADD) *(vec *)(to + c * LANES) += x;
            else if (c % 2 == 0) gate = x / (1.0f + exponential(-x)); /* a panel holds gates, and beside them .. */
            else *(vec *)(to + c / 2 * LANES) = gate * x;             /* .. what they let through */
        }
    }
}

/* `rows` x (`panels` * PANEL) results. Each sums over the inputs from first to last in its own lane. */
INLINE void tile(const int rows, const int panels, const int small, const int kind, const Matrix *m, int panel,
                 const float *x, int64_t x_step, float *out, int64_t out_step, const char *ahead, int lines) {
    const int vectors = 2 * panels;
    vec sums[ROWS][8];
    const int inputs = m->inputs;
    const int64_t size = (int64_t)inputs * PANEL;
    const float *wide = (const float *)m->panels + panel * size;
    const int8_t *narrow = (const int8_t *)m->panels + panel * size;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int c = 0; c < vectors; c++) sums[r][c] = (vec){0};
    for (int k = 0; k < inputs; k++) {
        if (k < lines) __builtin_prefetch(ahead + 64 * k, 0, 2);
        vec weights[8];
#pragma GCC unroll 16
        for (int c = 0; c < vectors; c++) {
            const int64_t at = (c / 2) * size + (int64_t)k * PANEL + (c % 2) * LANES;
            weights[c] = small ? widened(narrow + at) : *(vec *)(wide + at);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const vec value = all(x[r * x_step + k]);
#pragma GCC unroll 16
            for (int c = 0; c < vectors; c++) sums[r][c] += value * weights[c];
        }
    }
    vec done[ROWS * 8];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int c = 0; c < vectors; c++) done[r * vectors + c] = sums[r][c];
    finish(kind, m, rows, vectors, panel, done, out, out_step);
}

#define CASE(R, P)                                                                                        \
    case R:                                                                                               \
        for (; panel + P <= end; panel += P)                                                              \
            tile(R, P, small, kind, m, panel, x, x_step, out, out_step, ahead, lines);                    \
        for (; P > 1 && panel < end; panel++)                                                             \
            tile(R, 1, small, kind, m, panel, x, x_step, out, out_step, ahead, lines);                    \
        break;

/* Few rows take several panels at a time, so that enough sums are under way to hide the latency of each. */
INLINE void strip(int rows, const int small, int kind, const Matrix *m, int panel, int end, const float *x,
                  int64_t x_step, float *out, int64_t out_step, const char *ahead, int lines) {
    switch (rows) {
        CASE(1, 4)
        CASE(2, 2)
        CASE(3, 2)
        CASE(4, 1)
        CASE(5, 1)
        CASE(6, 1)
#if ROWS > 6
        CASE(7, 1)
        CASE(8, 1)
#endif
#if ROWS > 8
        CASE(9, 1)
        CASE(10, 1)
        CASE(11, 1)
        CASE(12, 1)
#endif
    }
}

#define CHUNK 192 /* rows whose inputs stay in the second cache while all panels pass by */

INLINE void multiply(const int small, int kind, const Matrix *m, int part, int parts, int rows, const float *x,
                     int64_t x_step, float *out, int64_t out_step) {
    const int panels = m->outputs / PANEL;
    const int first = panels * part / parts, last = panels * (part + 1) / parts;
    for (int start = 0; start < rows; start += CHUNK) {
        const int here = rows - start < CHUNK ? rows - start : CHUNK, tiles = (here + ROWS - 1) / ROWS;
        const int step = tiles > 1 ? 1 : last - first; /* one tile of rows: all panels in a go */
        /* While the tiles of a panel are made, the next one comes in: each fetches its part of it. */
        const int64_t bytes = (int64_t)m->inputs * PANEL * (small ? 1 : 4);
        const int lines = tiles > 1 ? (int)(bytes / 64 / tiles) : 0;
        for (int panel = first; panel < last; panel += step) {
            const char *next = (const char *)m->panels + (panel + 1) * bytes;
            for (int t = 0; t < tiles; t++) {
                const int row = start + here * t / tiles, end = start + here * (t + 1) / tiles;
                strip(end - row, small, kind, m, panel, panel + step, x + row * x_step, x_step, out + row * out_step,
                      out_step, next + (int64_t)t * lines * 64, panel + 1 < last ? lines : 0);
            }
        }
    }
}

/* out[rows] = or += x[rows] W^T + bias; this thread makes its share of the columns. */
static void product(int kind, const Matrix *m, int part, int parts, int rows, const float *x, int64_t x_step,
                    float *out, int64_t out_step) {
    if (m->scales) multiply(1, kind, m, part, parts, rows, x, x_step, out, out_step);
    else multiply(0, kind, m, part, parts, rows, x, x_step, out, out_step);
}

/* ------------------------------------------------------------------------------------------------------- attention */

typedef struct {
    int32_t layers, width, heads, kv_heads, head_dim, inner, slots, capacity, threads, vocabulary;
    float eps;
} Shape;

typedef struct {
    const float *input_norm, *post_norm, *q_norm, *k_norm; /* q_norm, k_norm: NULL where heads have no norm */
    Matrix qkv, o, gate_up, down;
} Layer;

/* Neighbouring pairs as complex numbers, times those of `turn`, times `scale`. */
INLINE void rotate(float *x, const float *turn, int width, float scale) {
    for (int i = 0; i < width; i += 2) {
        const float a = x[i], b = x[i + 1], c = turn[i] * scale, s = turn[i + 1] * scale;
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

/* Keys of a head lie transposed in blocks of LANES places, [capacity / LANES][head_dim][LANES]: one pass of products
 * gives the scores of a block. Values lie as they are, [capacity][padded head_dim]. `heads` share them: each is loaded
 * once for all. */
INLINE void scores_of(const int heads, const int blocks, const float *query, const float *keys, float *scores,
                      int64_t places, int width) {
    vec sums[4][4];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sums[h][b] = (vec){0};
    for (int d = 0; d < width; d++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) {
            const vec key = *(vec *)(keys + ((int64_t)b * width + d) * LANES);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) sums[h][b] += query[h * width + d] * key;
        }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) *(vec *)(scores + h * places + b * LANES) = sums[h][b];
}

INLINE void mix_of(const int heads, const float *scores, int64_t places, const float *values, int length, int padded,
                   vec mixed[4]) {
    vec sums[4][4];
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[h][i] = (vec){0};
    int t = 0;
    for (; t + 4 <= length; t += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const vec value = *(vec *)(values + (int64_t)(t + i) * padded);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) sums[h][i] += scores[h * places + t + i] * value;
        }
    for (; t < length; t++)
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) sums[h][0] += scores[h * places + t] * *(vec *)(values + (int64_t)t * padded);
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++) mixed[h] = (sums[h][0] + sums[h][1]) + (sums[h][2] + sums[h][3]);
}

INLINE void attend_to(const int heads, const float *query, const float *keys, const float *values, float *out,
                      float *scores, int64_t places, int length, int width, int padded) {
    const int blocks = (length + LANES - 1) / LANES;
    const int64_t size = (int64_t)width * LANES;
    float scale[4];
    int b = 0;
    for (; b + 4 <= blocks; b += 4) scores_of(heads, 4, query, keys + b * size, scores + b * LANES, places, width);
    for (; b < blocks; b++) scores_of(heads, 1, query, keys + b * size, scores + b * LANES, places, width);
    for (int h = 0; h < heads; h++) {
        float *row = scores + h * places;
        vec top = all(-INFINITY), total = {0};
        for (int t = length; t < blocks * LANES; t++) row[t] = -INFINITY;
        for (b = 0; b < blocks; b++) top = larger(top, *(vec *)(row + b * LANES));
        top = all(most(top));
        for (b = 0; b < blocks; b++)
            total += *(vec *)(row + b * LANES) = exponential(*(vec *)(row + b * LANES) - top);
        scale[h] = 1.0f / sum(total);
    }
    for (int d = 0; d < padded; d += LANES) {
        vec mixed[4];
        mix_of(heads, scores, places, values + d, length, padded, mixed);
        for (int h = 0; h < heads; h++) {
            mixed[h] *= scale[h];
            memcpy(out + h * width + d, mixed + h, 4 * (width - d < LANES ? width - d : LANES));
        }
    }
}

/* How many heads that share keys are attended for together. */
static int together(int sharing) { return sharing % 4 == 0 ? 4 : sharing % 2 == 0 ? 2 : 1; }

static void attend(int heads, const float *query, const float *keys, const float *values, float *out, float *scores,
                   int64_t places, int length, int width, int padded) {
    if (heads == 4) attend_to(4, query, keys, values, out, scores, places, length, width, padded);
    else if (heads == 2) attend_to(2, query, keys, values, out, scores, places, length, width, padded);
    else attend_to(1, query, keys, values, out, scores, places, length, width, padded);
}

/* ----------------------------------------------------------------------------------------------------- one forward */

typedef struct {
    int32_t tokens, wanted, taps;
    const int64_t *ids, *slots, *positions; /* [tokens]; the tokens of a slot stand in their order */
    const int64_t *rows;                    /* [wanted]: whose hidden states are asked for */
    const int64_t *tap_layers;              /* [taps], ascending */
    float *logits;                          /* [wanted][padded vocabulary] */
    float *tapped;                          /* [taps][wanted][width] */
    float *hidden;                          /* [wanted][padded width]: room for the states after the last norm */
} Work;

typedef struct {
    const float *embedding, *norm; /* [vocabulary][width], [width] */
    const float *turns;            /* [positions][head_dim]: cosine and sine of each pair */
    Matrix head;
    float *keys, *values;   /* [layers][slots][kv_heads][..] */
    float *stream, *normed; /* [tokens][padded width] */
    float *qkv, *mixed;     /* [tokens][padded outputs], [tokens][heads * head_dim] */
    float *inner;           /* [tokens][padded inner] */
    float *scores;          /* [threads][4][padded capacity] */
} Memory;

#ifdef _OPENMP
#include <omp.h>
#define PARALLEL _Pragma("omp parallel num_threads(shape->threads)")
#define WAIT _Pragma("omp barrier")
#define PART omp_get_thread_num()
#define PARTS omp_get_num_threads()
#else
#define PARALLEL
#define WAIT
#define PART 0
#define PARTS 1
#endif

#define SHARE(index, count) for (int index = (int)((int64_t)(count) * part / parts), \
                                     index##_end = (int)((int64_t)(count) * (part + 1) / parts); \
                                 index < index##_end; index++)

void forward(const Shape *shape, const Layer *layers, const Memory *memory, const Work *work) {
    const int tokens = work->tokens, width = shape->width, head_dim = shape->head_dim;
    const int heads = shape->heads, kv_heads = shape->kv_heads, sharing = heads / kv_heads;
    const int group = together(sharing), groups = heads / group;
    const int64_t step = UP(width, PANEL), qkv_step = UP((heads + 2 * kv_heads) * head_dim, PANEL);
    const int64_t inner_step = UP(shape->inner, LANES), mixed_step = heads * head_dim;
    const int64_t places = UP(shape->capacity, LANES), padded = UP(head_dim, LANES);
    const int64_t key_size = places * head_dim, value_size = shape->capacity * padded;
    const float scale = 1.0f / sqrtf((float)head_dim);
    float *x = memory->stream, *normed = memory->normed, *qkv = memory->qkv;
    PARALLEL {
        const int part = PART, parts = PARTS;
        int tap = 0;
        SHARE(t, tokens) memcpy(x + t * step, memory->embedding + work->ids[t] * width, 4 * width);
        for (int l = 0; l <= shape->layers; l++) {
            WAIT
            if (tap < work->taps && work->tap_layers[tap] == l) {
                SHARE(r, work->wanted)
                    memcpy(work->tapped + ((int64_t)tap * work->wanted + r) * width, x + work->rows[r] * step, 4 * width);
                tap++;
            }
            if (l == shape->layers) break;
            const Layer *layer = layers + l;
            SHARE(t, tokens) normalise(x + t * step, layer->input_norm, normed + t * step, width, shape->eps);
            WAIT
            product(STORE, &layer->qkv, part, parts, tokens, normed, step, qkv, qkv_step);
            WAIT
            const int64_t base = (int64_t)l * shape->slots * kv_heads;
            SHARE(item, tokens * kv_heads) {
                const int t = item / kv_heads, k = item % kv_heads;
                const int64_t position = work->positions[t], where = base + work->slots[t] * kv_heads + k;
                const float *turn = memory->turns + position * head_dim;
                float *row = qkv + t * qkv_step, *key = row + (heads + k) * head_dim;
                for (int h = k * sharing; h < (k + 1) * sharing; h++) {
                    if (layer->q_norm) normalise(row + h * head_dim, layer->q_norm, row + h * head_dim, head_dim, shape->eps);
                    rotate(row + h * head_dim, turn, head_dim, scale);
                }
                if (layer->k_norm) normalise(key, layer->k_norm, key, head_dim, shape->eps);
                rotate(key, turn, head_dim, 1.0f);
                float *to = memory->keys + where * key_size + position / LANES * LANES * head_dim + position % LANES;
                for (int d = 0; d < head_dim; d++) to[d * LANES] = key[d];
                memcpy(memory->values + where * value_size + position * padded, row + (heads + kv_heads + k) * head_dim,
                       4 * head_dim);
            }
            WAIT
            SHARE(item, tokens * groups) {
                const int t = item / groups, h = item % groups * group;
                const int64_t where = base + work->slots[t] * kv_heads + h / sharing;
                attend(group, qkv + t * qkv_step + h * head_dim, memory->keys + where * key_size,
                       memory->values + where * value_size, memory->mixed + t * mixed_step + h * head_dim,
                       memory->scores + part * 4 * places, places, (int)work->positions[t] + 1, head_dim, (int)padded);
            }
            WAIT
            product(ADD, &layer->o, part, parts, tokens, memory->mixed, mixed_step, x, step);
            WAIT
            SHARE(t, tokens) normalise(x + t * step, layer->post_norm, normed + t * step, width, shape->eps);
            WAIT
            product(SWIGLU, &layer->gate_up, part, parts, tokens, normed, step, memory->inner, inner_step);
            WAIT
            product(ADD, &layer->down, part, parts, tokens, memory->inner, inner_step, x, step);
        }
        SHARE(r, work->wanted) normalise(x + work->rows[r] * step, memory->norm, work->hidden + r * step, width, shape->eps);
        WAIT
        product(STORE, &memory->head, part, parts, work->wanted, work->hidden, step, work->logits,
                UP(shape->vocabulary, PANEL));
    }
}

/* --------------------------------------------------------------------------------------------------------- drawing */

#define STRETCH 16

/* As `draw` of sample.py without cuts: `cold` 1 / temperature; uniforms below 0 take the likeliest token. `logits`
 * [rows][step] become weights. */
void choose(int rows, int vocabulary, int64_t step, float *logits, const float *cold, const float *uniforms,
            int64_t *ids, float *logprobs, int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int r = 0; r < rows; r++) {
        float *row = logits + r * step;
        const int full = (vocabulary + LANES - 1) / LANES;
        for (int i = vocabulary; i < full * LANES; i++) row[i] = -INFINITY;
        vec top = all(-INFINITY), total = {0};
        ints odd = {0};
        for (int i = 0; i < full; i++) {
            const vec x = *(vec *)(row + i * LANES);
            top = larger(top, x);
            odd |= x != x;
        }
        const float peak = most(top);
        int sound = peak > -INFINITY && peak < INFINITY;
        for (int i = 0; i < LANES; i++) sound &= odd[i] == 0;
        if (!sound) { /* a broken model must not look like one that draws */
            ids[r] = 0;
            logprobs[r] = NAN;
            continue;
        }
        int likeliest = 0;
        while (likeliest < vocabulary - 1 && row[likeliest] != peak) likeliest++;
        for (int i = 0; i < full; i++)
            total += *(vec *)(row + i * LANES) = exponential((*(vec *)(row + i * LANES) - peak) * cold[r]);
        const float whole = sum(total);
        int chosen = likeliest;
        if (uniforms[r] >= 0) {
            const float aim = whole * (uniforms[r] < 1 - 1e-6f ? uniforms[r] : 1 - 1e-6f);
            float before = 0;
            int i = 0;
            for (; i + STRETCH < full; i += STRETCH) { /* first by stretches, then token by token */
                vec here = {0};
                for (int j = i; j < i + STRETCH; j++) here += *(vec *)(row + j * LANES);
                const float weight = sum(here);
                if (before + weight > aim) break;
                before += weight;
            }
            chosen = likeliest; /* where rounding leads past the end: the last token that has any weight */
            for (int j = i * LANES; j < vocabulary; j++) {
                before += row[j];
                if (row[j] > 1e-30f) chosen = j;
                if (before > aim) break;
            }
        }
        ids[r] = chosen;
        logprobs[r] = logf(row[chosen]) - logf(whole);
    }
}

/* log sum e^logits and the first likeliest token of each row [step]; NAN and -1 where a row is no distribution. */
void normalise_rows(int rows, int vocabulary, int64_t step, const float *logits, float *normalisers, int64_t *likeliest,
                    int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int r = 0; r < rows; r++) {
        const float *row = logits + r * step;
        const int full = vocabulary / LANES;
        vec top = all(-INFINITY), total = {0};
        ints odd = {0};
        for (int i = 0; i < full; i++) {
            const vec x = *(vec *)(row + i * LANES);
            top = larger(top, x);
            odd |= x != x;
        }
        float peak = most(top);
        int sound = 1;
        for (int i = 0; i < LANES; i++) sound &= odd[i] == 0;
        for (int i = full * LANES; i < vocabulary; i++) {
            sound &= row[i] == row[i];
            peak = row[i] > peak ? row[i] : peak;
        }
        if (!sound || !(peak > -INFINITY && peak < INFINITY)) {
            normalisers[r] = NAN;
            likeliest[r] = -1;
            continue;
        }
        for (int i = 0; i < full; i++) total += exponential(*(vec *)(row + i * LANES) - peak);
        float whole = sum(total);
        for (int i = full * LANES; i < vocabulary; i++) whole += expf(row[i] - peak);
        int first = 0;
        while (row[first] != peak) first++;
        normalisers[r] = peak + logf(whole);
        likeliest[r] = first;
    }
}

/* -------------------------------------------------------------------------------------- between products, in training */

/* Numbers of LANES at a time, float or (`rounded`) bfloat16, which is a float's upper half. At a row's end fewer. */
INLINE vec load(const void *from, int64_t at, int count, const int rounded) {
    if (rounded) {
        shorts half = {0};
        memcpy(&half, (const uint16_t *)from + at, 2 * count);
#if defined(__AVX512F__)
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
        return (vec)(__builtin_convertvector(half, words) << 16);
#endif
    }
    vec x = {0};
    memcpy(&x, (const float *)from + at, 4 * count);
    return x;
}

INLINE void store(void *to, int64_t at, vec x, int count, const int rounded) {
    if (rounded) {
        const words bits = (words)x, even = bits + 0x7fff + ((bits >> 16) & 1);
        const words nan = (words)(x != x), kept = (even & ~nan) | ((bits | 0x400000) & nan);
#if defined(__AVX512F__)
        const shorts half = (shorts)_mm512_cvtepi32_epi16((__m512i)(kept >> 16));
#else
        const shorts half = __builtin_convertvector(kept >> 16, shorts);
#endif
        memcpy((uint16_t *)to + at, &half, 2 * count);
    } else
        memcpy((float *)to + at, &x, 4 * count);
}

#define EACH(width) for (int i = 0, n; (n = (width) - i < LANES ? (width) - i : LANES) > 0; i += LANES)
/* Constant counts and kinds, so that the compiler sees plain loads and stores. */
#define LOAD(from, at) (n == LANES ? load(from, at, LANES, rounded) : load(from, at, n, rounded))
#define FLOATS(from, at) (n == LANES ? load(from, at, LANES, 0) : load(from, at, n, 0))
#define SAVE(to, at, x, kind) (n == LANES ? store(to, at, x, LANES, kind) : store(to, at, x, n, kind))

INLINE void norm_rows(const int rounded, int64_t first, int64_t last, int width, const float *x, const float *weight,
                      float eps, void *out, float *scales) {
    for (int64_t r = first; r < last; r++) {
        const int64_t at = r * width;
        vec squares = {0};
        EACH(width) {
            const vec here = FLOATS(x, at + i);
            squares += here * here;
        }
        const float scale = scales[r] = 1.0f / sqrtf(sum(squares) / width + eps);
        EACH(width) SAVE(out, at + i, FLOATS(x, at + i) * scale * FLOATS(weight, i), rounded);
    }
}

/* With y = x s w and incoming g: x's is s (g w - x s^2 sum(g w x) / width), the weight's sum over rows of g x s. */
INLINE void norm_rows_back(const int rounded, int64_t first, int64_t last, int width, const void *grad, const float *x,
                           const float *weight, const float *scales, float *x_grad, float *weight_grad) {
    for (int64_t r = first; r < last; r++) {
        const int64_t at = r * width;
        const float scale = scales[r];
        vec along = {0};
        EACH(width) {
            const vec here = LOAD(grad, at + i) * FLOATS(x, at + i);
            along += here * FLOATS(weight, i);
            SAVE(weight_grad, i, FLOATS(weight_grad, i) + here * scale, 0);
        }
        const float back = sum(along) * scale * scale / width;
        EACH(width)
            SAVE(x_grad, at + i, (LOAD(grad, at + i) * FLOATS(weight, i) - FLOATS(x, at + i) * back) * scale, 0);
    }
}

INLINE void gate_rows(const int rounded, int64_t first, int64_t last, int inner, const void *gate_up, void *out) {
    for (int64_t r = first; r < last; r++)
        EACH(inner) {
            const vec gate = LOAD(gate_up, 2 * r * inner + i), up = LOAD(gate_up, (2 * r + 1) * inner + i);
            SAVE(out, r * inner + i, gate / (1.0f + exponential(-gate)) * up, rounded);
        }
}

/* With s = sigmoid(gate): up's is gate s g, gate's up g s (1 + gate (1 - s)). */
INLINE void gate_rows_back(const int rounded, int64_t first, int64_t last, int inner, const void *gate_up,
                           const void *grad, void *out) {
    for (int64_t r = first; r < last; r++)
        EACH(inner) {
            const int64_t at = 2 * r * inner + i;
            const vec gate = LOAD(gate_up, at), up = LOAD(gate_up, at + inner), g = LOAD(grad, r * inner + i);
            const vec s = 1.0f / (1.0f + exponential(-gate));
            SAVE(out, at, up * g * s * (1.0f + gate * (1.0f - s)), rounded);
            SAVE(out, at + inner, gate * s * g, rounded);
        }
}

#define FIRST (rows * PART / PARTS)
#define LAST (rows * (PART + 1) / PARTS)
#define BOTH(function, ...)                     \
    do {                                        \
        if (rounded) function(1, __VA_ARGS__);  \
        else function(0, __VA_ARGS__);          \
    } while (0)

void norm_forward(int rounded, int64_t rows, int width, const float *x, const float *weight, float eps, void *out,
                  float *scales, int threads) {
#pragma omp parallel num_threads(threads)
    BOTH(norm_rows, FIRST, LAST, width, x, weight, eps, out, scales);
}

/* `weight_grad` [threads][width], zeros. */
void norm_backward(int rounded, int64_t rows, int width, const void *grad, const float *x, const float *weight,
                   const float *scales, float *x_grad, float *weight_grad, int threads) {
#pragma omp parallel num_threads(threads)
    BOTH(norm_rows_back, FIRST, LAST, width, grad, x, weight, scales, x_grad, weight_grad + (int64_t)PART * width);
}

void gate_forward(int rounded, int64_t rows, int inner, const void *gate_up, void *out, int threads) {
#pragma omp parallel num_threads(threads)
    BOTH(gate_rows, FIRST, LAST, inner, gate_up, out);
}

void gate_backward(int rounded, int64_t rows, int inner, const void *gate_up, const void *grad, void *out, int threads) {
#pragma omp parallel num_threads(threads)
    BOTH(gate_rows_back, FIRST, LAST, inner, gate_up, grad, out);
}
