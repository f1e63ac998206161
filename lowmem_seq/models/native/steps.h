/* What cells.c exports, for one kind of products; it is included once for each. */

static inline void NAMED(rounded)(int64_t count, float factor, const float *restrict from, PRODUCT *restrict to) {
    INDEPENDENT
    for (int64_t j = 0; j < count; j++) to[j] = STORE(factor * from[j]);
}

/* The rows of gate g count twice, see lstm_forward.py. */
static inline float NAMED(factor)(int64_t row, int64_t width) { return row / width == 2 ? 2.f : 1.f; }

/* packed: (P, 4D, C + 8 + D), [W, b, what b lost, 0, U] of each direction. */
EXPORTED void NAMED(pack_for_forward)(const Weights *weights, void *packed) {
    int64_t width = weights->width, channels = weights->channels;
    PRODUCT *to = packed;
    for (int64_t p = 0; p < weights->directions; p++)
        for (int64_t row = 0; row < GATES * width; row++, to += width) {
            float factor = NAMED(factor)(row, width);
            NAMED(rounded)(channels, factor, weights->w[p] + row * channels, to);
            to += channels;
            float bias = factor * (weights->b[p][row] + weights->b_too[p][row]);
            memset(to, 0, sizeof(PRODUCT) * BIAS_COLUMNS);
            to[0] = STORE(bias);
            float lost = bias - LOAD(to[0]);
            to[1] = STORE(lost == lost ? lost : 0.f); /* of what is infinite nothing is lost */
            to += BIAS_COLUMNS;
            NAMED(rounded)(width, factor, weights->u[p] + row * width, to);
        }
}

/* u: (P, 4D, D), w: (P, 4D, C) or null. */
EXPORTED void NAMED(pack_for_backward)(const Weights *weights, void *u, void *w) {
    int64_t width = weights->width, channels = weights->channels;
    for (int64_t p = 0; p < weights->directions; p++)
        for (int64_t row = 0; row < GATES * width; row++) {
            float factor = NAMED(factor)(row, width);
            int64_t at = p * GATES * width + row;
            NAMED(rounded)(width, factor, weights->u[p] + row * width, (PRODUCT *)u + at * width);
            if (w) NAMED(rounded)(channels, factor, weights->w[p] + row * channels, (PRODUCT *)w + at * channels);
        }
}

static inline void NAMED(added)(int64_t count, int64_t is_first, float factor, const PRODUCT *restrict from,
                                float *restrict to) {
    if (is_first) memset(to, 0, sizeof(float) * (size_t)count);
    INDEPENDENT
    for (int64_t j = 0; j < count; j++) to[j] += factor * LOAD(from[j]);
}

/* To the gradients, or in place of them: dw (P, 4D, C), du (P, 4D, D) or null, db (P, 4D). */
EXPORTED void NAMED(add_gradients)(const Weights *gradients, int64_t is_first, const void *dw, const void *du,
                                   const float *db) {
    int64_t width = gradients->width, channels = gradients->channels;
    for (int64_t p = 0; p < gradients->directions; p++)
        for (int64_t row = 0; row < GATES * width; row++) {
            float factor = NAMED(factor)(row, width);
            int64_t at = p * GATES * width + row;
            NAMED(added)(channels, is_first, factor, (const PRODUCT *)dw + at * channels,
                         gradients->w[p] + row * channels);
            if (du)
                NAMED(added)(width, is_first, factor, (const PRODUCT *)du + at * width, gradients->u[p] + row * width);
            else if (is_first)
                memset(gradients->u[p] + row * width, 0, sizeof(float) * (size_t)width);
            float bias = (is_first ? 0.f : gradients->b[p][row]) + factor * db[at];
            gradients->b[p][row] = gradients->b_too[p][row] = bias;
        }
}

/* Before the first step: no state, no h, the first tokens, and a one for each of the two parts of a bias. */
EXPORTED void NAMED(start)(const Forward *f) {
    int64_t n = f->images * f->sequences;
    memset(f->state, 0, sizeof(float) * (size_t)(f->directions * n * f->width));
    for (int64_t p = 0; p < f->directions; p++)
        for (int64_t k = 0; k < n; k++) {
            char *row = f->inputs + (p * n + k) * f->row_bytes;
            memcpy(row, token(&f->x[p], 0, k / f->sequences, k % f->sequences), (size_t)f->token_bytes);
            PRODUCT *ones = (PRODUCT *)(row + f->token_bytes);
            memset(ones, 0, sizeof(PRODUCT) * (size_t)(BIAS_COLUMNS + f->width));
            ones[0] = ones[1] = STORE(1.f);
        }
}

static inline void NAMED(cells_forward)(int64_t width, const PRODUCT *restrict sums, float *restrict state,
                                        float *restrict gates, PRODUCT *restrict hidden, PRODUCT *restrict out) {
    INDEPENDENT
    for (int64_t j = 0; j < width; j++) {
        float i = sigmoid(LOAD(sums[j])), f = sigmoid(LOAD(sums[width + j]));
        float g = tanh_of_half(LOAD(sums[2 * width + j])), o = sigmoid(LOAD(sums[3 * width + j]));
        float c = f * state[j] + i * g;
        state[j] = c;
        gates[j] = i;
        gates[width + j] = f;
        gates[2 * width + j] = g;
        gates[3 * width + j] = o;
        hidden[j] = out[j] = STORE(o * tanh_of_half(2.f * c));
    }
}

/* The cells of step t, from its products, and the inputs of the step after it. */
EXPORTED void NAMED(forward)(const Forward *f, int64_t t) {
    int64_t width = f->width, n = f->images * f->sequences, k = 0;
    for (int64_t p = 0; p < f->directions; p++)
        for (int64_t image = 0; image < f->images; image++)
            for (int64_t sequence = 0; sequence < f->sequences; sequence++, k++) {
                char *row = f->inputs + k * f->row_bytes;
                NAMED(cells_forward)(width, (const PRODUCT *)f->sums + k * GATES * width, f->state + k * width, f->row,
                                     (PRODUCT *)(row + f->token_bytes) + BIAS_COLUMNS,
                                     (PRODUCT *)token(&f->out[p], t, image, sequence));
                if (f->gates)
                    KEEP(GATES * width, f->row, (KEPT *)f->gates + (t * f->directions * n + k) * GATES * width);
                if (t + 1 < f->steps)
                    memcpy(row, token(&f->x[p], t + 1, image, sequence), (size_t)f->token_bytes);
            }
}

static inline void NAMED(states_again)(int64_t width, const float *restrict gates, const float *restrict earlier,
                                       float *restrict state) {
    INDEPENDENT
    for (int64_t j = 0; j < width; j++) state[j] = gates[width + j] * earlier[j] + gates[j] * gates[2 * width + j];
}

/* Before the last step: no gradients yet, all states again, from the gates, and the h before each step, from the result. */
EXPORTED void NAMED(remember)(const Backward *b) {
    int64_t width = b->width, n = b->images * b->sequences, cells = b->directions * n;
    memset(b->no_state, 0, sizeof(float) * (size_t)width);
    memset(b->dh, 0, sizeof(PRODUCT) * (size_t)(cells * width));
    memset(b->dstate, 0, sizeof(float) * (size_t)(cells * width));
    memset(b->db, 0, sizeof(float) * (size_t)(b->directions * GATES * width));
    for (int64_t t = 0; t < b->steps; t++)
        for (int64_t k = 0; k < cells; k++) {
            float *state = b->states + (t * cells + k) * width;
            RECALL((GATES - 1) * width, (const KEPT *)b->gates + (t * cells + k) * GATES * width, b->row);
            NAMED(states_again)(width, b->row, t ? state - cells * width : b->no_state, state);
        }
    PRODUCT *before = (PRODUCT *)b->before;
    for (int64_t p = 0; p < b->directions; p++)
        for (int64_t t = 0; t + 1 < b->steps; t++)
            for (int64_t k = 0; k < n; k++, before += width)
                memcpy(before, token(&b->out[p], t, k / b->sequences, k % b->sequences),
                       sizeof(PRODUCT) * (size_t)width);
}

static inline void NAMED(cells_backward)(int64_t width, const float *restrict gates, const float *restrict state,
                                         const float *restrict earlier, const PRODUCT *restrict dout,
                                         const PRODUCT *restrict dh_after, float *restrict dstate,
                                         PRODUCT *restrict da, float *restrict db) {
    INDEPENDENT
    for (int64_t j = 0; j < width; j++) {
        float i = gates[j], f = gates[width + j], g = gates[2 * width + j], o = gates[3 * width + j];
        float r = tanh_of_half(2.f * state[j]);
        float dh = LOAD(dout[j]) + LOAD(dh_after[j]);
        float dc = dstate[j] + dh * o * (1.f - r * r);
        float da_i = dc * g * i * (1.f - i);
        float da_f = dc * earlier[j] * f * (1.f - f);
        float da_g = dc * i * (1.f - g * g) * 0.5f; /* by twice its preactivation */
        float da_o = dh * r * o * (1.f - o);
        dstate[j] = dc * f;
        da[j] = STORE(da_i);
        da[width + j] = STORE(da_f);
        da[2 * width + j] = STORE(da_g);
        da[3 * width + j] = STORE(da_o);
        db[j] += da_i;
        db[width + j] += da_f;
        db[2 * width + j] += da_g;
        db[3 * width + j] += da_o;
    }
}

/* The gradients in the preactivations of step t, and in the state before it. */
EXPORTED void NAMED(backward)(const Backward *b, int64_t t) {
    int64_t width = b->width, n = b->images * b->sequences, k = 0;
    for (int64_t p = 0; p < b->directions; p++)
        for (int64_t image = 0; image < b->images; image++)
            for (int64_t sequence = 0; sequence < b->sequences; sequence++, k++) {
                int64_t cell = t * b->directions * n + k;
                const float *state = b->states + cell * width;
                const float *earlier = t ? state - b->directions * n * width : b->no_state;
                PRODUCT *da = (PRODUCT *)b->da_of_step + k * GATES * width;
                RECALL(GATES * width, (const KEPT *)b->gates + cell * GATES * width, b->row);
                NAMED(cells_backward)(width, b->row, state, earlier,
                                      (const PRODUCT *)token(&b->dout[p], t, image, sequence),
                                      (const PRODUCT *)b->dh + k * width, b->dstate + k * width, da,
                                      b->db + p * GATES * width);
                memcpy(token(&b->da_by_token[p], t, image, sequence), da, sizeof(PRODUCT) * GATES * (size_t)width);
                if (t)
                    memcpy((PRODUCT *)b->da + ((p * (b->steps - 1) + t - 1) * n + k % n) * GATES * width, da,
                           sizeof(PRODUCT) * GATES * (size_t)width);
            }
}

#undef KIND
#undef PRODUCT
#undef LOAD
#undef STORE
#undef KEPT
#undef KEEP
#undef RECALL
