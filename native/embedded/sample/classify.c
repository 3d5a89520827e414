/*
 * The sample program: what is on a picture?
 *
 *     classify MODEL PICTURE...          the five most likely classes of each picture
 *     classify MODEL --raw FILE...       a file of raw values for each input instead of a picture
 *     classify MODEL --describe          what the model is
 *
 * It is also what the tests drive, hence the options for raw numbers and for figures.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* for clock_gettime */
#endif
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "picture_file.h"
#include "tvm_mobilenet.h"

static const char USAGE[] =
    "usage: classify MODEL [options] PICTURE...\n"
    "       classify MODEL [options] --raw FILE...\n"
    "       classify MODEL --describe\n"
    "\n"
    "  MODEL         the folder with model.txt and the library\n"
    "  PICTURE       a PPM, PGM, BMP, JPEG or PNG file\n"
    "  --raw         the files hold raw values in the model's own layout, one for each input\n"
    "  --top N       how many classes to name [5]\n"
    "  --logits      print every output value instead of classes\n"
    "  --threads N   threads that compute [one on each fast core]\n"
    "  --cpus LIST   processors to compute on, 4,5 for example\n"
    "  --repeat N    run N times [1]\n"
    "  --stats       print times and peak memory as a line of JSON\n";

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, MAX_CPUS = 256 };

typedef struct settings {
    const char *model;
    char **files;
    size_t file_count;
    size_t top;
    size_t repeat;
    bool is_raw;
    bool wants_logits;
    bool wants_stats;
    bool wants_description;
    int cpus[MAX_CPUS];
    tmn_options options;
} settings;

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int usage(const char *problem) {
    fprintf(stderr, "classify: %s\n\n%s", problem, USAGE);
    return EXIT_USAGE;
}

static int failed(const char *what, const char *problem) {
    fprintf(stderr, "classify: %s: %s\n", what, problem);
    return EXIT_FAILED;
}

static bool parse_number(const char *text, long least, long most, long *number) {
    char *end;
    *number = strtol(text, &end, 10);
    return end != text && *end == '\0' && *number >= least && *number <= most;
}

static bool parse_cpus(char *list, settings *wanted) {
    for (char *word = strtok(list, ","); word != NULL; word = strtok(NULL, ",")) {
        long cpu;
        if (wanted->options.cpu_count == MAX_CPUS || !parse_number(word, 0, 1 << 16, &cpu)) {
            return false;
        }
        wanted->cpus[wanted->options.cpu_count++] = (int)cpu;
    }
    wanted->options.cpus = wanted->cpus;
    return wanted->options.cpu_count > 0;
}

/* An option with a value; returns what is wrong with it, or NULL. */
static const char *parse_valued(const char *option, char *value, settings *wanted) {
    long number = 0;
    if (strcmp(option, "--cpus") == 0) {
        return parse_cpus(value, wanted) ? NULL : "--cpus takes processors, 4,5 for example";
    }
    if (strcmp(option, "--top") == 0) {
        bool is_good = parse_number(value, 1, 1000000, &number);
        wanted->top = (size_t)number;
        return is_good ? NULL : "--top takes a number from 1 on";
    }
    if (strcmp(option, "--repeat") == 0) {
        bool is_good = parse_number(value, 1, 100000000, &number);
        wanted->repeat = (size_t)number;
        return is_good ? NULL : "--repeat takes a number from 1 on";
    }
    bool is_good = parse_number(value, 1, 65536, &number);
    wanted->options.threads = (int)number;
    return is_good ? NULL : "--threads takes a number from 1 on";
}

static int parse(int argc, char **argv, settings *wanted) {
    static const char *const VALUED[] = {"--top", "--repeat", "--threads", "--cpus"};
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        bool takes_value = false;
        for (size_t k = 0; k < sizeof VALUED / sizeof VALUED[0]; k++) {
            takes_value = takes_value || strcmp(word, VALUED[k]) == 0;
        }
        if (takes_value) {
            const char *problem = i + 1 < argc ? parse_valued(word, argv[i + 1], wanted)
                                               : "an option lacks its value";
            if (problem != NULL) {
                return usage(problem);
            }
            i++;
        } else if (strcmp(word, "--raw") == 0) {
            wanted->is_raw = true;
        } else if (strcmp(word, "--logits") == 0) {
            wanted->wants_logits = true;
        } else if (strcmp(word, "--stats") == 0) {
            wanted->wants_stats = true;
        } else if (strcmp(word, "--describe") == 0) {
            wanted->wants_description = true;
        } else if (strcmp(word, "--help") == 0) {
            fputs(USAGE, stdout);
            exit(EXIT_SUCCESS);
        } else if (word[0] == '-' && word[1] != '\0') {
            return usage("an option that is not known");
        } else if (wanted->model == NULL) {
            wanted->model = word;
        } else {
            wanted->files[wanted->file_count++] = word;
        }
    }
    if (wanted->model == NULL || (wanted->file_count == 0) != wanted->wants_description) {
        return usage("a model and something to look at are needed");
    }
    return EXIT_SUCCESS;
}

static void print_tensors(const char *kind, const tmn_tensor_info *tensors, size_t count) {
    for (size_t i = 0; i < count; i++) {
        printf("%-8s %s: %s", kind, tensors[i].name, tmn_dtype_name(tensors[i].dtype));
        for (size_t d = 0; d < tensors[i].rank; d++) {
            printf("%c%" PRId64, d == 0 ? ' ' : 'x', tensors[i].shape[d]);
        }
        printf(" %s\n", tensors[i].layout);
    }
}

static void describe(const tmn_model *model) {
    const tmn_description *about = tmn_describe(model);
    printf("model    %s\nweights  %s\ntarget   %s\ntvm      %s\nthreads  %d\nclasses  %zu\n",
           about->model, about->weights, about->target, about->tvm, tmn_threads(model),
           about->class_count);
    print_tensors("input", about->inputs, about->input_count);
    print_tensors("output", about->outputs, about->output_count);
    /* Now, not after the threads have ended: who waits for this line times the start. */
    fflush(stdout);
}

/* The largest value first; of equal ones, the one that comes first. */
static size_t best_but(const float *values, size_t count, const bool *taken) {
    size_t best = count;
    for (size_t i = 0; i < count; i++) {
        if (!taken[i] && (best == count || values[i] > values[best])) {
            best = i;
        }
    }
    return best;
}

static int print_classes(tmn_model *model, const settings *wanted) {
    const tmn_description *about = tmn_describe(model);
    const tmn_tensor_info *output = &about->outputs[0];
    const void *data;
    if (about->output_count != 1 || output->rank != 2 || output->shape[0] != 1 ||
        output->dtype != TMN_FLOAT32) {
        return failed(about->model, "its output is not one score for each class; see --logits");
    }
    if (tmn_output_data(model, 0, &data) != TMN_OK) {
        return failed(wanted->model, tmn_last_error(model));
    }
    const float *scores = data;
    size_t count = (size_t)output->shape[1];
    bool *taken = calloc(count, sizeof *taken);
    if (taken == NULL) {
        return failed(wanted->model, "out of memory");
    }
    /* Softmax, from the largest score so that nothing overflows. */
    double top = (double)scores[best_but(scores, count, taken)];
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        sum += exp((double)scores[i] - top);
    }
    for (size_t rank = 0; rank < wanted->top && rank < count; rank++) {
        size_t best = best_but(scores, count, taken);
        taken[best] = true;
        printf("  %6.2f %%  %4zu  %s\n", 100.0 * exp((double)scores[best] - top) / sum, best,
               best < about->class_count ? about->class_names[best] : "");
    }
    free(taken);
    return EXIT_SUCCESS;
}

static int print_logits(tmn_model *model, const settings *wanted) {
    const tmn_description *about = tmn_describe(model);
    for (size_t i = 0; i < about->output_count; i++) {
        const void *data;
        if (about->outputs[i].dtype != TMN_FLOAT32) {
            return failed(about->outputs[i].name, "only float32 can be printed");
        }
        if (tmn_output_data(model, i, &data) != TMN_OK) {
            return failed(wanted->model, tmn_last_error(model));
        }
        for (size_t k = 0; k < about->outputs[i].size_bytes / sizeof(float); k++) {
            printf("%.9g\n", (double)((const float *)data)[k]);
        }
    }
    return EXIT_SUCCESS;
}

/* The largest resident set of this process so far, in bytes; 0 where the system does not say. */
static long long peak_bytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long long kib = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmHWM: %lld", &kib) == 1) {
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return kib * 1024;
}

static int by_value(const void *left, const void *right) {
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Run as often as was asked for, and print the figures where they were. */
static int run(tmn_model *model, const settings *wanted, double open_ms) {
    double *times = calloc(wanted->repeat, sizeof *times);
    if (times == NULL) {
        return failed("--repeat", "out of memory");
    }
    for (size_t i = 0; i < wanted->repeat; i++) {
        double begin = now_ms();
        if (tmn_run(model) != TMN_OK) {
            free(times);
            return failed(wanted->model, tmn_last_error(model));
        }
        times[i] = now_ms() - begin;
    }
    double first = times[0];
    qsort(times, wanted->repeat, sizeof *times, by_value);
    if (wanted->wants_stats) {
        printf("{\"open_ms\": %.3f, \"first_ms\": %.3f, \"min_ms\": %.3f, \"median_ms\": %.3f, "
               "\"repeat\": %zu, \"threads\": %d, \"peak_bytes\": %lld}\n",
               open_ms, first, times[0], times[wanted->repeat / 2], wanted->repeat,
               tmn_threads(model), peak_bytes());
    }
    free(times);
    return wanted->wants_logits ? print_logits(model, wanted) : print_classes(model, wanted);
}

static int set_raw(tmn_model *model, const settings *wanted) {
    const tmn_description *about = tmn_describe(model);
    if (wanted->file_count != about->input_count) {
        return failed("--raw", "the model takes another number of inputs; give a file for each");
    }
    for (size_t i = 0; i < about->input_count; i++) {
        const tmn_tensor_info *input = &about->inputs[i];
        uint8_t *data = malloc(input->size_bytes + 1);
        FILE *file = fopen(wanted->files[i], "rb");
        if (data == NULL || file == NULL) {
            free(data);
            if (file != NULL) {
                fclose(file);
            }
            return failed(wanted->files[i], "it cannot be opened");
        }
        /* One byte more than is needed, to see a file that is too long. */
        size_t size = fread(data, 1, input->size_bytes + 1, file);
        fclose(file);
        tmn_tensor tensor = {input->dtype, input->rank, input->shape, data, size};
        tmn_status status = tmn_set_input(model, i, &tensor);
        free(data);
        if (status != TMN_OK) {
            return failed(wanted->files[i], tmn_last_error(model));
        }
    }
    return EXIT_SUCCESS;
}

static int set_picture(tmn_model *model, const char *path) {
    picture found;
    const char *problem = picture_read(path, &found);
    if (problem != NULL) {
        return failed(path, problem);
    }
    tmn_status status = tmn_set_picture(model, 0, found.rgb, found.width, found.height, 0);
    free(found.rgb);
    return status == TMN_OK ? EXIT_SUCCESS : failed(path, tmn_last_error(model));
}

static int use(tmn_model *model, const settings *wanted, double open_ms) {
    if (wanted->wants_description) {
        describe(model);
        return EXIT_SUCCESS;
    }
    if (tmn_describe(model)->is_random) {
        fputs("classify: the model's weights are random; its outputs mean nothing\n", stderr);
    }
    if (wanted->is_raw) {
        int code = set_raw(model, wanted);
        return code == EXIT_SUCCESS ? run(model, wanted, open_ms) : code;
    }
    int code = EXIT_SUCCESS;
    for (size_t i = 0; code == EXIT_SUCCESS && i < wanted->file_count; i++) {
        code = set_picture(model, wanted->files[i]);
        if (code == EXIT_SUCCESS && !wanted->wants_logits) {
            puts(wanted->files[i]);
        }
        if (code == EXIT_SUCCESS) {
            code = run(model, wanted, open_ms);
        }
    }
    return code;
}

int main(int argc, char **argv) {
    settings wanted = {.top = 5, .repeat = 1};
    wanted.files = calloc((size_t)argc + 1, sizeof *wanted.files);
    if (wanted.files == NULL) {
        return failed("starting", "out of memory");
    }
    int code = parse(argc, argv, &wanted);
    if (code == EXIT_SUCCESS) {
        tmn_model *model;
        double begin = now_ms();
        if (tmn_open(wanted.model, &wanted.options, &model) != TMN_OK) {
            code = failed(wanted.model, tmn_last_error(NULL));
        } else {
            code = use(model, &wanted, now_ms() - begin);
            tmn_close(model);
        }
    }
    free(wanted.files);
    return code;
}
