/* Layer norm. For the norm a block takes a row, which is read from memory once and twice more from the cache. For its
 * gradient a team of threads takes a row, each a pack of it, so that the row is read once in all. Blocks have several
 * teams where rows are narrow; a row that is wider than the largest team is taken in chunks, which are read again. */
#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/cuda_math.cuh"

enum {
    NORM_THREADS = 256,    /* at most, of a block that takes a row */
    TEAM_MOST = 1024,      /* threads of a team */
    BLOCK_THREADS = 384,   /* that a block of several teams has at most */
    GRADIENT_PARTS = 256,  /* at most, of the rows, for sums over rows: two blocks for each multiprocessor */
    WARPS = 32,            /* of a block at most */
    SHARED_FREE = 40 << 10 /* bytes of shared memory that a block may have without asking */
};

/* Mean and rstd of a row, whose squares are summed about the mean; then the normed row. */
template <typename T>
__device__ static void norm_row(T *y, float *mean, float *rstd, const T *x, const float *weight, const float *bias,
                                int64_t width, float epsilon, bool wide, float *shared)
{
    const int64_t begin = threadIdx.x * (int64_t)PACK<T>, step = blockDim.x * (int64_t)PACK<T>;
    float numbers[PACK<T>], w[PACK<T>], b[PACK<T>], sum = 0.0f, squares = 0.0f;
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            sum += numbers[i];
    }
    const float average = block_sum(sum, shared) / (float)width;
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide, average);
        for (int i = 0; i < PACK<T>; i++)
            squares += (numbers[i] - average) * (numbers[i] - average);
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares, shared) / (float)width + epsilon);
    for (int64_t at = begin; at < width; at += step) {
        load(numbers, x + at, width - at, wide);
        load(w, weight + at, width - at, wide);
        load(b, bias + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            numbers[i] = (numbers[i] - average) * inverse * w[i] + b[i];
        store(y + at, numbers, width - at, wide);
    }
    if (threadIdx.x == 0) {
        *mean = average;
        *rstd = inverse;
    }
}

template <typename T>
__global__ void __launch_bounds__(NORM_THREADS) norm(T *y, float *mean, float *rstd, const T *x, const float *weight,
                                                     const float *bias, int64_t width, float epsilon, bool wide)
{
    __shared__ float shared[32];
    const int64_t row = blockIdx.x, at = row * width;
    norm_row(y + at, mean + row, rstd + row, x + at, weight, bias, width, epsilon, wide, shared);
}

template <typename T>
static void norm_rows(struct stream *stream, void *y, float *mean, float *rstd, const void *x, const float *weight,
                      const float *bias, int64_t rows, int64_t width, double epsilon)
{
    LAUNCH(stream, norm<T>, dim3((unsigned)rows), row_threads(parts_of(width, PACK<T>), NORM_THREADS), 0, (T *)y, mean,
           rstd, (const T *)x, weight, bias, width, (float)epsilon,
           all_aligned(y, x, weight, bias) && width % PACK<T> == 0);
}

void cuda_norm(struct stream *stream, enum element element, void *y, float *mean, float *rstd, const void *x,
               const float *weight, const float *bias, int64_t rows, int64_t width, double epsilon)
{
    BY_ELEMENT(element, norm_rows, stream, y, mean, rstd, x, weight, bias, rows, width, epsilon);
}

/* The norm reads the sum from where it was stored, rounded; every thread reads what it has written itself. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    add_and_norm(T *sum, T *y, float *mean, float *rstd, const T *x, const T *r, const float *residual_bias,
                 const float *weight, const float *bias, int64_t width, float epsilon, bool wide)
{
    __shared__ float shared[32];
    const int64_t row = blockIdx.x, first = row * width, step = blockDim.x * (int64_t)PACK<T>;
    for (int64_t at = threadIdx.x * (int64_t)PACK<T>; at < width; at += step) {
        float total[PACK<T>], more[PACK<T>];
        load(total, x + first + at, width - at, wide);
        if (residual_bias != nullptr) {
            load(more, residual_bias + at, width - at, wide);
            for (int i = 0; i < PACK<T>; i++)
                total[i] += more[i];
        }
        load(more, r + first + at, width - at, wide);
        for (int i = 0; i < PACK<T>; i++)
            total[i] += more[i];
        store(sum + first + at, total, width - at, wide);
    }
    norm_row(y + first, mean + row, rstd + row, (const T *)sum + first, weight, bias, width, epsilon, wide, shared);
}

template <typename T>
static void add_and_norm_rows(struct stream *stream, void *sum, void *y, float *mean, float *rstd, const void *x,
                              const void *r, const float *residual_bias, const float *weight, const float *bias,
                              int64_t rows, int64_t width, double epsilon)
{
    LAUNCH(stream, add_and_norm<T>, dim3((unsigned)rows), row_threads(parts_of(width, PACK<T>), NORM_THREADS), 0,
           (T *)sum, (T *)y, mean, rstd, (const T *)x, (const T *)r, residual_bias, weight, bias, width, (float)epsilon,
           all_aligned(sum, y, x, r, residual_bias, weight, bias) && width % PACK<T> == 0);
}

void cuda_add_residual_norm(struct stream *stream, enum element element, void *sum, void *y, float *mean, float *rstd,
                            const void *x, const void *r, const float *residual_bias, const float *weight,
                            const float *bias, int64_t rows, int64_t width, double epsilon)
{
    BY_ELEMENT(element, add_and_norm_rows, stream, sum, y, mean, rstd, x, r, residual_bias, weight, bias, rows, width,
               epsilon);
}

/* How the rows fall to threads; the same for all blocks. */
struct teams {
    int threads, count; /* of a team; teams of a block */
    int64_t rows, width;
    bool wide; /* all rows begin at multiples of 16 bytes */
};

/* Of one thread: its team in the block, its number there, and its first column in a chunk. */
struct place {
    int team, thread, column;
};

template <typename T> static struct teams teams_of(int64_t rows, int64_t width, bool aligned)
{
    const int threads = row_threads(parts_of(width, PACK<T>), TEAM_MOST);
    return {threads, threads < BLOCK_THREADS ? BLOCK_THREADS / threads : 1, rows, width,
            aligned && width % PACK<T> == 0};
}

template <typename T> __device__ static struct place place_in(const struct teams &teams)
{
    const int team = (int)threadIdx.x / teams.threads, thread = (int)threadIdx.x - team * teams.threads;
    return {team, thread, thread * PACK<T>};
}

/* Columns of one chunk. */
template <typename T> __host__ __device__ static int64_t span_of(const struct teams &teams)
{
    return teams.threads * (int64_t)PACK<T>;
}

/* A thread's pack of a row, from `column` on; zeros where there is no row or no column. */
template <typename T>
__device__ static uint4 load_part(const T *from, const struct teams &teams, int64_t row, int64_t column)
{
    return load_pack(from + row * teams.width + column, row < teams.rows ? teams.width - column : 0, teams.wide);
}

/* How many columns of a thread's pack exist. */
template <typename T> __device__ static int left_of(const struct teams &teams, int64_t column)
{
    const int64_t left = teams.width - column;
    return left < PACK<T> ? (int)left : PACK<T>;
}

/* The sums over the team, the same for all its threads, which are in step with all others of the block. Calls take two
 * arrays `shared` in turn: who writes to one again has met those who read it at the call between. */
template <int N>
__device__ static void team_sums(float (&sums)[N], float (&shared)[N][WARPS], const struct teams &teams, int team)
{
    const int lane = (int)threadIdx.x % 32, warps = teams.threads / 32;
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            sums[i] += __shfl_xor_sync(ALL_LANES, sums[i], offset);
    if (warps == 1)
        return;
    if (lane == 0)
        for (int i = 0; i < N; i++)
            shared[i][threadIdx.x / 32] = sums[i];
    __syncthreads();
    for (int i = 0; i < N; i++) {
        sums[i] = lane < warps ? shared[i][team * warps + lane] : 0.0f;
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            sums[i] += __shfl_xor_sync(ALL_LANES, sums[i], offset);
    }
}

/* What the gradient reads. */
template <typename T> struct norm_inputs {
    const T *dy, *residual, *x;
    const float *mean, *rstd, *weight;
};

/* Of the thread's columns over rows: sums of dy xhat and of dy. */
template <typename T> struct row_sums {
    float weight[PACK<T>], bias[PACK<T>];
};

/* Adds the thread's pack of a row to the sums over the width, of g and of g xhat, and unless NULL to those over rows.
 */
template <typename T>
__device__ static void add_row(float (&both)[2], struct row_sums<T> *sums, const struct norm_inputs<T> &in, uint4 d,
                               uint4 x, int64_t row, int64_t column, int left, bool wide)
{
    const float average = in.mean[row], inverse = in.rstd[row];
    float dy[PACK<T>], numbers[PACK<T>], w[PACK<T>];
    widen_pack(dy, d, in.dy);
    widen_pack(numbers, x, in.x);
    load(w, in.weight + column, left, wide);
    for (int i = 0; i < PACK<T>; i++) {
        const float xhat = (numbers[i] - average) * inverse;
        both[0] += dy[i] * w[i];
        both[1] += dy[i] * w[i] * xhat;
        if (sums != nullptr) {
            sums->weight[i] += dy[i] * xhat;
            sums->bias[i] += dy[i];
        }
    }
}

/* The thread's pack of dx in a row, from the means of g and of g xhat. */
template <typename T>
__device__ static void store_gradient(T *dx, const float (&means)[2], const struct norm_inputs<T> &in, uint4 d, uint4 x,
                                      uint4 residual, int64_t row, int64_t column, int left, bool wide)
{
    const float average = in.mean[row], inverse = in.rstd[row];
    float g[PACK<T>], numbers[PACK<T>], w[PACK<T>];
    widen_pack(g, d, in.dy);
    widen_pack(numbers, x, in.x);
    load(w, in.weight + column, left, wide);
    for (int i = 0; i < PACK<T>; i++)
        g[i] = (g[i] * w[i] - means[0] - (numbers[i] - average) * inverse * means[1]) * inverse;
    if (in.residual != nullptr) {
        widen_pack(w, residual, in.dy);
        for (int i = 0; i < PACK<T>; i++)
            g[i] += w[i];
    }
    store(dx, g, left, wide);
}

/* The sums over rows of the thread's columns go to own [2][width]. */
template <typename T>
__device__ static void store_sums(float *own, const struct row_sums<T> &sums, const struct teams &teams, int64_t column)
{
    store(own + column, sums.weight, teams.width - column, false);
    store(own + teams.width + column, sums.bias, teams.width - column, false);
}

/* The sums of the first team and, in the teams' order, of the others. `others`: [2 PACK][their threads]. */
template <typename T>
__device__ static void add_teams(struct row_sums<T> &sums, float *others, const struct teams &teams,
                                 const struct place &place)
{
    const int all = (teams.count - 1) * teams.threads, other = (int)threadIdx.x - teams.threads;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PACK<T>; i++)
        if (other >= 0) {
            others[i * all + other] = sums.weight[i];
            others[(PACK<T> + i) * all + other] = sums.bias[i];
        }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PACK<T>; i++)
        for (int at = place.thread; other < 0 && at < all; at += teams.threads) {
            sums.weight[i] += others[i * all + at];
            sums.bias[i] += others[(PACK<T> + i) * all + at];
        }
}

/* The packs of a row that a thread has for itself in shared memory, one behind those of the other threads. */
enum {
    DY,
    X,
    RESIDUAL,
    STAGED
};

/* Starts to copy the thread's packs of a row, from `at` on, of which `left` elements exist; the copy ends at a
 * __pipeline_wait_prior. */
template <typename T>
__device__ static void stage_row(uint4 *to, const struct norm_inputs<T> &in, int64_t at, int left, bool wide)
{
    const T *const from[] = {in.dy + at, in.x + at, in.residual + at};
#pragma unroll
    for (int i = 0; i < STAGED; i++)
        if (i == RESIDUAL && in.residual == nullptr)
            continue;
        else if (wide && left >= PACK<T>)
            __pipeline_memcpy_async(to + i * blockDim.x, from[i], 16);
        else
            to[i * blockDim.x] = load_pack(from[i], left, false);
    __pipeline_commit();
}

/* Row by row: with xhat = (x - mean) rstd and g = weight dy, dx = rstd (g - mean(g) - xhat mean(g xhat)). A block takes
 * `each` rows, whose sums of dy xhat and dy end in partial[block] [2][width]; a thread has the same columns in every
 * row and keeps their sums in registers. The next row is on its way while one is worked on. */
template <typename T>
__global__ void __launch_bounds__(TEAM_MOST)
    norm_gradient(T *dx, float *partial, struct norm_inputs<T> in, struct teams teams, int each)
{
    extern __shared__ uint4 staged[]; /* [2][STAGED][threads] */
    __shared__ float shared[2][2][WARPS];
    const struct place place = place_in<T>(teams);
    const int64_t first = blockIdx.x * (int64_t)each, step = teams.count * teams.width;
    const int width = (int)teams.width, rows = (int)(teams.rows - first < each ? teams.rows - first : each);
    const int left = place.column < width ? width - place.column : 0;
    struct row_sums<T> sums = {
    };
    int64_t at = (first + place.team) * width + place.column;
    stage_row(staged + threadIdx.x, in, at, place.team < rows ? left : 0, teams.wide);
    for (int top = 0, turn = 0; top < rows; top += teams.count, turn ^= 1, at += step) { /* all teams go together */
        const int row = top + place.team, own = row < rows ? left : 0;
        const uint4 *packs = staged + turn * STAGED * blockDim.x + threadIdx.x;
        float both[2] = {};
        stage_row(staged + (turn ^ 1) * STAGED * blockDim.x + threadIdx.x, in, at + step,
                  row + teams.count < rows ? left : 0, teams.wide);
        __pipeline_wait_prior(1);
        if (own > 0)
            add_row(both, &sums, in, packs[DY * blockDim.x], packs[X * blockDim.x], first + row, place.column, left,
                    teams.wide);
        team_sums(both, shared[turn], teams, place.team);
        both[0] /= (float)width;
        both[1] /= (float)width;
        if (own > 0)
            store_gradient(dx + at, both, in, packs[DY * blockDim.x], packs[X * blockDim.x],
                           packs[RESIDUAL * blockDim.x], first + row, place.column, left, teams.wide);
    }
    add_teams(sums, reinterpret_cast<float *>(staged), teams, place);
    if (place.team == 0)
        store_sums(partial + blockIdx.x * 2 * teams.width, sums, teams, place.column);
}

/* The same dx in rows of several chunks, a row by a block of one team. */
template <typename T>
__global__ void __launch_bounds__(TEAM_MOST) norm_gradient_chunks(T *dx, struct norm_inputs<T> in, struct teams teams)
{
    __shared__ float shared[2][WARPS];
    const struct place place = place_in<T>(teams);
    const int64_t row = blockIdx.x, span = span_of<T>(teams);
    float both[2] = {};
    for (int64_t column = place.column; column < teams.width; column += span)
        add_row(both, (struct row_sums<T> *)nullptr, in, load_part(in.dy, teams, row, column),
                load_part(in.x, teams, row, column), row, column, left_of<T>(teams, column), teams.wide);
    team_sums(both, shared, teams, place.team);
    both[0] /= (float)teams.width;
    both[1] /= (float)teams.width;
    for (int64_t column = place.column; column < teams.width; column += span) {
        const uint4 residual = in.residual != nullptr ? load_part(in.residual, teams, row, column) : uint4{};
        store_gradient(dx + row * teams.width + column, both, in, load_part(in.dy, teams, row, column),
                       load_part(in.x, teams, row, column), residual, row, column, left_of<T>(teams, column),
                       teams.wide);
    }
}

/* And the sums over rows of chunk number blockIdx.y, as `norm_gradient` leaves them. */
template <typename T>
__global__ void __launch_bounds__(TEAM_MOST)
    norm_sums_chunks(float *partial, struct norm_inputs<T> in, struct teams teams, int each)
{
    const int64_t column = blockIdx.y * span_of<T>(teams) + place_in<T>(teams).column;
    const int64_t first = blockIdx.x * (int64_t)each, end = first + each < teams.rows ? first + each : teams.rows;
    struct row_sums<T> sums = {
    };
    float both[2] = {};
    for (int64_t row = first; row < end; row++)
        add_row(both, &sums, in, load_part(in.dy, teams, row, column), load_part(in.x, teams, row, column), row, column,
                left_of<T>(teams, column), teams.wide);
    store_sums(partial + blockIdx.x * 2 * teams.width, sums, teams, column);
}

template <typename T>
static void norm_gradient_rows(struct stream *stream, void *dx, float *dweight, float *dbias, const void *dy,
                               const void *residual, const void *x, const float *mean, const float *rstd,
                               const float *weight, int64_t rows, int64_t width, bool accumulate)
{
    const int64_t room = (int64_t)(CUDA_WORKSPACE / sizeof(float)) / (width > 0 ? 2 * width : 1);
    const int64_t most = least(least(room > 0 ? room : 1, GRADIENT_PARTS), rows);
    const int each = most > 0 ? (int)parts_of(rows, most) : 1;
    const int64_t parts = parts_of(rows, each);
    const struct teams teams = teams_of<T>(rows, width, all_aligned(dx, dy, residual, x, weight));
    const struct norm_inputs<T> in = {
        (const T *)dy, (const T *)residual, (const T *)x, mean, rstd, weight
    };
    const int threads = teams.threads * teams.count;
    const int64_t chunks = parts_of(width, span_of<T>(teams));
    float *partial = (float *)stream->workspace;
    if (chunks <= 1) {
        const size_t staged = 2 * STAGED * sizeof(uint4) * (size_t)threads;
        if (staged > SHARED_FREE)
            CUDA_CHECK(cudaFuncSetAttribute(norm_gradient<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            2 * STAGED * sizeof(uint4) * TEAM_MOST));
        LAUNCH(stream, norm_gradient<T>, dim3((unsigned)parts), threads, staged, (T *)dx, partial, in, teams, each);
    } else { /* the sums first: dx may be dy */
        LAUNCH(stream, norm_sums_chunks<T>, dim3((unsigned)parts, (unsigned)chunks), threads, 0, partial, in, teams,
               each);
        LAUNCH(stream, norm_gradient_chunks<T>, dim3((unsigned)rows), threads, 0, (T *)dx, in, teams);
    }
    cuda_join_sums(stream, dweight, dbias, partial, parts, 2 * width, width, accumulate);
}

void cuda_norm_gradient(struct stream *stream, enum element element, void *dx, float *dweight, float *dbias,
                        const void *dy, const void *residual, const void *x, const float *mean, const float *rstd,
                        const float *weight, int64_t rows, int64_t width, bool accumulate)
{
    BY_ELEMENT(element, norm_gradient_rows, stream, dx, dweight, dbias, dy, residual, x, mean, rstd, weight, rows,
               width, accumulate);
}
