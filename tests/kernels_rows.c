/* The device table's elementwise kernels and norms. */
#include "tests/kernel_run.h"

/* rows, width */
static const int64_t shapes[][2] = {{0, 48},   {1, 1},    {1, 257},   {5, 3},      {5, 48},
                                    {23, 1},   {23, 101}, {100, 48},  {100, 257},  {200, 101},
                                    {3, 8000}, {700, 9},  {2, 13001}, {1600, 264}, {5, 4096}};

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    const double root = sqrt(2.0 / M_PI), t = tanh(root * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
}

static void convert(struct run *r, const int64_t *shape)
{
    const int64_t count = shape[0] * shape[1];
    void *to = give_elements(r, count, NAN);
    const float *from = give_numbers(r, count, 3.0);
    r->device->convert(r->stream, r->element, to, from, count);
    take_back(r);
    for (int64_t i = 0; i < count; i++)
        expect_equal(r, 0, i, rounded_to(r->element, r->array[1].before[i]));
}

/* With a bias and in place, or neither. */
static void add_residual(struct run *r, const int64_t *shape, bool whole)
{
    const int64_t rows = shape[0], width = shape[1];
    void *y = give_elements(r, rows * width, NAN), *x = give_elements(r, rows * width, 1.0);
    void *residual = give_elements(r, rows * width, 1.0);
    const float *bias = give_numbers(r, width, 1.0);
    r->device->add_residual(r->stream, r->element, y, x, residual, whole ? bias : NULL, rows, width);
    r->device->add_residual(r->stream, r->element, whole ? x : residual, x, residual, whole ? bias : NULL, rows, width);
    take_back(r);
    for (int64_t i = 0; i < rows * width; i++) {
        const double sum = (double)r->array[1].before[i] + (double)r->array[2].before[i] +
                           (whole ? (double)r->array[3].before[i % width] : 0.0);
        expect(r, 0, i, sum, 4e-7);
        expect(r, whole ? 1 : 2, i, sum, 4e-7);
    }
}

static void add_residual_bias(struct run *r, const int64_t *shape)
{
    add_residual(r, shape, true);
}

static void add_residual_alone(struct run *r, const int64_t *shape)
{
    add_residual(r, shape, false);
}

/* Both over -12 ... 12, where they go from one asymptote to the other. */
static void test_gelu(struct run *r, const int64_t *shape)
{
    const int64_t count = shape[0] * shape[1];
    void *y = give_elements(r, count, NAN), *dx = give_elements(r, count, NAN);
    const void *x = give_elements(r, count, 12.0);
    void *dy = give_elements(r, count, 1.0);
    r->device->gelu(r->stream, r->element, y, x, count);
    r->device->gelu_gradient(r->stream, r->element, dx, dy, x, count);
    r->device->gelu_gradient(r->stream, r->element, dy, dy, x, count); /* in place */
    take_back(r);
    for (int64_t i = 0; i < count; i++) {
        const double at = (double)r->array[2].before[i], slope = gelu_slope(at);
        expect(r, 0, i, gelu(at), 1.5e-7 * fmax(1.0, fabs(at)));
        expect(r, 1, i, slope * (double)r->array[3].before[i], 2.5e-7);
        expect_equal(r, 3, i, r->array[1].after[i]);
    }
}

static void column_sums(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1], pitch = width % 2 == 0 ? width : width + 7;
    float *first = give_numbers(r, width, NAN), *later = give_numbers(r, width, 1.0);
    const void *dy = give_rows(r, rows, width, pitch, 1.0);
    r->device->column_sums(r->stream, r->element, first, dy, rows, width, pitch, false);
    r->device->column_sums(r->stream, r->element, later, dy, rows, width, pitch, true);
    take_back(r);
    const double more = fmax(1.0, (double)rows / 100.0); /* of sums that grow */
    for (int64_t i = 0; i < width; i++) {
        double sum = 0.0;
        for (int64_t row = 0; row < rows; row++)
            sum += (double)r->array[2].before[row * pitch + i];
        expect(r, 0, i, sum, 1e-5 * more);
        expect(r, 1, i, sum + (double)r->array[1].before[i], 1e-5 * more);
    }
}

static const double epsilon = 1e-3;

/* One row of LayerNorm. */
static void norm_row(double *y, double *mean, double *rstd, const double *x, const double *weight, const double *bias,
                     int64_t width)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < width; i++)
        sum += x[i];
    *mean = sum / (double)width;
    for (int64_t i = 0; i < width; i++)
        squares += (x[i] - *mean) * (x[i] - *mean);
    *rstd = 1.0 / sqrt(squares / (double)width + epsilon);
    for (int64_t i = 0; i < width; i++)
        y[i] = (x[i] - *mean) * *rstd * weight[i] + bias[i];
}

/* The gradient of sum(y dy): from the derivatives of mean and rstd, term by term. */
static void norm_row_gradient(double *dx, double *dweight, double *dbias, const double *dy, const double *x,
                              const double *weight, double mean, double rstd, int64_t width)
{
    double to_mean = 0.0, to_rstd = 0.0;
    for (int64_t i = 0; i < width; i++) {
        to_mean -= dy[i] * weight[i] * rstd;
        to_rstd += dy[i] * weight[i] * (x[i] - mean);
        dweight[i] += dy[i] * (x[i] - mean) * rstd;
        dbias[i] += dy[i];
    }
    for (int64_t i = 0; i < width; i++)
        dx[i] = dy[i] * weight[i] * rstd + to_mean / (double)width -
                to_rstd * rstd * rstd * rstd * (x[i] - mean) / (double)width;
}

static void norm(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1];
    void *y = give_elements(r, rows * width, NAN);
    float *mean = give_numbers(r, rows, NAN), *rstd = give_numbers(r, rows, NAN);
    const void *x = give_elements(r, rows * width, 3.0);
    const float *weight = give_numbers(r, width, 1.0), *bias = give_numbers(r, width, 1.0);
    r->device->norm(r->stream, r->element, y, mean, rstd, x, weight, bias, rows, width, epsilon);
    take_back(r);
    double *hx = before(r, 3), *hw = before(r, 4), *hb = before(r, 5), *hy = allocate((size_t)width, sizeof *hy);
    for (int64_t row = 0; row < rows; row++) {
        double m, s;
        norm_row(hy, &m, &s, hx + row * width, hw, hb, width);
        expect(r, 1, row, m, 1e-6);
        expect(r, 2, row, s, 1e-6 * s);
        for (int64_t i = 0; i < width; i++)
            expect(r, 0, row * width + i, hy[i], 3e-6);
    }
    free(hx), free(hw), free(hb), free(hy);
}

/* In place over x or r; the norm of the sum is that of the separate kernels, to the bit. */
static void add_residual_norm(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1];
    void *sum = give_elements(r, rows * width, NAN), *y = give_elements(r, rows * width, NAN);
    float *mean = give_numbers(r, rows, NAN), *rstd = give_numbers(r, rows, NAN);
    void *x = give_elements(r, rows * width, 2.0), *residual = give_elements(r, rows * width, 2.0);
    const float *weight = give_numbers(r, width, 1.0), *bias = give_numbers(r, width, 1.0);
    const float *residual_bias = give_numbers(r, width, 1.0);
    void *sum2 = give_elements(r, rows * width, NAN), *y2 = give_elements(r, rows * width, NAN);
    void *y3 = give_elements(r, rows * width, NAN), *y4 = give_elements(r, rows * width, NAN);
    const struct device *d = r->device;
    const enum element e = r->element;
    d->add_residual_norm(r->stream, e, sum, y, mean, rstd, x, residual, residual_bias, weight, bias, rows, width,
                         epsilon);
    d->add_residual(r->stream, e, sum2, x, residual, residual_bias, rows, width);
    d->norm(r->stream, e, y2, mean, rstd, sum2, weight, bias, rows, width, epsilon);
    d->add_residual_norm(r->stream, e, residual, y3, mean, rstd, x, residual, NULL, weight, bias, rows, width, epsilon);
    d->add_residual_norm(r->stream, e, x, y4, mean, rstd, x, residual, residual_bias, weight, bias, rows, width,
                         epsilon);
    take_back(r);
    for (int64_t i = 0; i < rows * width; i++) {
        const double hx = (double)r->array[4].before[i], hr = (double)r->array[5].before[i];
        const double hb = (double)r->array[8].before[i % width];
        expect(r, 0, i, hx + hr + hb, 1e-6);
        expect_equal(r, 9, i, r->array[0].after[i]);
        expect_equal(r, 10, i, r->array[1].after[i]);
        expect(r, 5, i, hx + hr, 1e-6);
        expect(r, 4, i, hx + (double)r->array[5].after[i] + hb, 1e-6);
    }
    double *hw = before(r, 6), *hb = before(r, 7), *hy = allocate((size_t)width, sizeof *hy);
    double *total = allocate((size_t)width, sizeof *total);
    for (int64_t row = 0; row < rows; row++) {
        double m, s;
        for (int64_t i = 0; i < width; i++)
            total[i] = (double)r->array[4].after[row * width + i];
        norm_row(hy, &m, &s, total, hw, hb, width);
        for (int64_t i = 0; i < width; i++)
            expect(r, 12, row * width + i, hy[i], 3e-6);
        for (int64_t i = 0; i < width; i++)
            total[i] = (double)r->array[5].after[row * width + i];
        norm_row(hy, &m, &s, total, hw, hb, width);
        for (int64_t i = 0; i < width; i++)
            expect(r, 11, row * width + i, hy[i], 3e-6);
    }
    free(hw), free(hb), free(hy), free(total);
}

/* First with a residual gradient in place of which dx comes, then accumulated and in place of dy. */
static void norm_gradient(struct run *r, const int64_t *shape)
{
    const int64_t rows = shape[0], width = shape[1];
    void *y = give_elements(r, rows * width, NAN);
    float *mean = give_numbers(r, rows, NAN), *rstd = give_numbers(r, rows, NAN);
    const void *x = give_elements(r, rows * width, 3.0);
    const float *weight = give_numbers(r, width, 1.0);
    void *dy = give_elements(r, rows * width, 1.0), *residual = give_elements(r, rows * width, 1.0);
    float *dw = give_numbers(r, width, NAN), *db = give_numbers(r, width, NAN);
    float *dw2 = give_numbers(r, width, 1.0), *db2 = give_numbers(r, width, 1.0);
    const struct device *d = r->device;
    d->norm(r->stream, r->element, y, mean, rstd, x, weight, weight, rows, width, epsilon);
    d->norm_gradient(r->stream, r->element, residual, dw, db, dy, residual, x, mean, rstd, weight, rows, width, false);
    d->norm_gradient(r->stream, r->element, dy, dw2, db2, dy, NULL, x, mean, rstd, weight, rows, width, true);
    take_back(r);
    double *hx = before(r, 3), *hw = before(r, 4), *hdy = before(r, 5), *hy = allocate((size_t)width, sizeof *hy);
    double *hdx = allocate((size_t)width, sizeof *hdx), *hdw = allocate((size_t)width, sizeof *hdw);
    double *hdb = allocate((size_t)width, sizeof *hdb);
    for (int64_t row = 0; row < rows; row++) {
        double m, s;
        norm_row(hy, &m, &s, hx + row * width, hw, hw, width);
        norm_row_gradient(hdx, hdw, hdb, hdy + row * width, hx + row * width, hw, m, s, width);
        for (int64_t i = 0; i < width; i++) {
            expect(r, 5, row * width + i, hdx[i], 1e-6 * (1.0 + s));
            expect(r, 6, row * width + i, hdx[i] + (double)r->array[6].before[row * width + i], 2e-6 * (1.0 + s));
        }
    }
    const double more = fmax(1.0, (double)rows / 100.0); /* of sums that grow */
    for (int64_t i = 0; i < width; i++) {
        expect(r, 7, i, hdw[i], 3e-5 * more);
        expect(r, 8, i, hdb[i], 1e-5 * more);
        expect(r, 9, i, hdw[i] + (double)r->array[9].before[i], 3e-5 * more);
        expect(r, 10, i, hdb[i] + (double)r->array[10].before[i], 1e-5 * more);
    }
    free(hx), free(hw), free(hdy), free(hy), free(hdx), free(hdw), free(hdb);
}

/* The references' gradients against differences of the references. */
static void test_references(void)
{
    enum {
        WIDTH = 7
    };
    double worst = 0.0;
    for (double x = -6.0; x < 6.0; x += 0.37)
        worst = fmax(worst, fabs((gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5 - gelu_slope(x)));
    ok(worst < 1e-9, "the slope of GELU is that of finite differences (%g)", worst);

    double x[WIDTH], w[WIDTH], dy[WIDTH], y[2][WIDTH], dx[WIDTH], dw[WIDTH] = {0}, db[WIDTH] = {0}, m, s;
    for (int i = 0; i < WIDTH; i++) {
        x[i] = (double)number_at(0, i);
        w[i] = (double)number_at(1, i);
        dy[i] = (double)number_at(2, i);
    }
    norm_row(y[0], &m, &s, x, w, w, WIDTH);
    norm_row_gradient(dx, dw, db, dy, x, w, m, s, WIDTH);
    worst = 0.0;
    for (int i = 0; i < WIDTH; i++) {
        double change = 0.0;
        for (int side = 0; side < 2; side++) {
            x[i] += side == 0 ? 1e-5 : -2e-5;
            norm_row(y[side], &m, &s, x, w, w, WIDTH);
        }
        x[i] += 1e-5;
        for (int j = 0; j < WIDTH; j++)
            change += (y[0][j] - y[1][j]) * dy[j];
        worst = fmax(worst, fabs(change / 2e-5 - dx[i]));
        change = 0.0;
        for (int side = 0; side < 2; side++) {
            w[i] += side == 0 ? 1e-5 : -2e-5;
            norm_row(y[side], &m, &s, x, w, w, WIDTH); /* weight and bias move together */
        }
        w[i] += 1e-5;
        for (int j = 0; j < WIDTH; j++)
            change += (y[0][j] - y[1][j]) * dy[j];
        worst = fmax(worst, fabs(change / 2e-5 - dw[i] - db[i]));
    }
    ok(worst < 1e-8, "the gradients of LayerNorm are those of finite differences (%g)", worst);
}

/* A number that is none must not be lost on the way: the step is stopped by it. */
static void test_nonfinite(void)
{
    const struct device *d = device_of(1);
    struct stream *stream = d->stream_open();
    float *x = d->allocate(128), *y = d->allocate(128), in[20], out[20];
    for (int i = 0; i < 20; i++)
        in[i] = 1.0f;
    in[3] = NAN;
    in[18] = NAN;
    d->copy(stream, x, in, sizeof in);
    d->gelu(stream, ELEMENT_FLOAT32, y, x, 20);
    d->copy(stream, out, y, sizeof out);
    d->stream_wait(stream);
    ok(isnan(out[3]) && isnan(out[18]) && !isnan(out[4]), "GELU of NaN is NaN");
    in[3] = 1e4f;
    in[18] = -1e4f;
    d->copy(stream, x, in, sizeof in);
    d->gelu(stream, ELEMENT_FLOAT32, y, x, 20);
    d->copy(stream, out, y, sizeof out);
    d->stream_wait(stream);
    ok(out[3] == 1e4f && fabsf(out[18]) < 1e-30f, "GELU of large numbers is the number or nothing");
    d->release(x, 128);
    d->release(y, 128);
    d->stream_close(stream);
}

/* Bits of float32 numbers, and of what they become in bfloat16. */
static const struct {
    uint32_t from;
    uint16_t to;
} conversions[] = {
    {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, /* 1, under the half, the half: to even */
    {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82}, {0xbf818000, 0xbf82}, /* over it, the half: to even upwards */
    {0x3fffffff, 0x4000}, {0x7f7f7fff, 0x7f7f}, {0x7f7f8000, 0x7f80}, /* to the next power, to the largest, beyond */
    {0x7f7fffff, 0x7f80}, {0xff7fffff, 0xff80}, {0x7f800000, 0x7f80}, /* the largest float32, infinities */
    {0xff800000, 0xff80}, {0x00000000, 0x0000}, {0x80000000, 0x8000}, /* zeros */
    {0x00000001, 0x0000}, {0x80008000, 0x8000}, {0x00008001, 0x0001}, /* subnormal numbers */
    {0x00018000, 0x0002}, {0x007f7fff, 0x007f}, {0x007fffff, 0x0080}, /* the last to the smallest normal number */
    {0x7fc00000, 0x7fc0}, {0x7f800001, 0x7fc0}, {0xff80ffff, 0xffc0}, /* NaN, also with the lower half alone */
    {0xffffffff, 0xffff}, {0x7fabcdef, 0x7feb},
};

/* A CUDA device may make any NaN of one. */
static bool is_same(uint16_t found, uint16_t expected)
{
    return found == expected || (cuda != NULL && (found & 0x7fff) > 0x7f80 && (expected & 0x7fff) > 0x7f80);
}

/* The table at every place of arrays of any length up to some vectors. */
static void test_conversions(void)
{
    enum {
        COUNT = 70,
        TABLE = sizeof conversions / sizeof conversions[0]
    };
    const struct device *d = device_of(1);
    struct stream *stream = d->stream_open();
    float *from = d->allocate(COUNT * sizeof(float));
    uint16_t *to = d->allocate(COUNT * sizeof *to), out[COUNT];
    bool same = true, inside = true;
    for (int count = 0; count <= COUNT; count++)
        for (int turn = 0; turn < TABLE; turn++) {
            uint32_t in[COUNT];
            for (int i = 0; i < COUNT; i++)
                in[i] = conversions[(i + turn) % TABLE].from;
            memset(out, GUARD_BYTE, sizeof out);
            d->copy(stream, from, in, sizeof in);
            d->copy(stream, to, out, sizeof out);
            d->convert(stream, ELEMENT_BFLOAT16, to, from, count);
            d->copy(stream, out, to, sizeof out);
            d->stream_wait(stream);
            for (int i = 0; i < COUNT; i++)
                if (i < count)
                    same = same && is_same(out[i], conversions[(i + turn) % TABLE].to);
                else
                    inside = inside && out[i] == GUARD_BYTE * 0x101;
        }
    ok(same, "numbers at the edges of bfloat16 become what they should");
    ok(inside, "and nothing is written behind them");
    d->release(from, COUNT * sizeof(float));
    d->release(to, COUNT * sizeof *to);
    d->stream_close(stream);
}

/* Every upper half with lower halves around the middle and at the ends. */
static void test_all_conversions(void)
{
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum {
        LOWER = sizeof lower / sizeof lower[0],
        COUNT = LOWER << 16
    };
    const struct device *d = device_of(3);
    struct stream *stream = d->stream_open();
    float *in = allocate(COUNT, sizeof *in), *from = d->allocate(COUNT * sizeof *from);
    uint16_t *out = allocate(COUNT, sizeof *out), *to = d->allocate(COUNT * sizeof *to);
    for (uint32_t i = 0; i < COUNT; i++)
        memcpy(&in[i], &(uint32_t){(i / LOWER << 16) + lower[i % LOWER]}, sizeof *in);
    d->copy(stream, from, in, COUNT * sizeof *from);
    d->convert(stream, ELEMENT_BFLOAT16, to, from, COUNT);
    d->copy(stream, out, to, COUNT * sizeof *to);
    d->stream_wait(stream);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++) {
        const float should_be = rounded_to(ELEMENT_BFLOAT16, in[i]);
        float found;
        memcpy(&found, &(uint32_t){(uint32_t)out[i] << 16}, sizeof found);
        wrong += isnan(should_be) ? !isnan(found) : memcmp(&found, &should_be, sizeof found) != 0;
    }
    ok(wrong == 0, "numbers of all sizes are rounded to the nearest, ties to even (%d are not)", wrong);
    d->release(from, COUNT * sizeof *from);
    d->release(to, COUNT * sizeof *to);
    d->stream_close(stream);
    free(in), free(out);
}

int main(int argc, char **argv)
{
    const char *missing = device_choice_open(argv[argc - 1]);
    if (missing != NULL)
        return tap_skip_all(missing);
    test_references();
    test_nonfinite();
    test_conversions();
    test_all_conversions();
    TEST_SHAPES("convert", convert, shapes);
    TEST_SHAPES("add residual and bias", add_residual_bias, shapes);
    TEST_SHAPES("add residual", add_residual_alone, shapes);
    TEST_SHAPES("GELU and its gradient", test_gelu, shapes);
    TEST_SHAPES("column sums", column_sums, shapes);
    TEST_SHAPES("norm", norm, shapes);
    TEST_SHAPES("add residual and norm", add_residual_norm, shapes);
    TEST_SHAPES("norm's gradient", norm_gradient, shapes);
    return tap_done();
}
