/* A libnvidia-ml.so.1 that answers from the text file named by NVML_STUB_FILE, read anew by every call, so that
 * a test can move memory and processes under a running daemon. One fact per line, fields separated by tabs:
 *
 *   gpu    INDEX  UUID  NAME  TOTAL  USED  RESERVED     (bytes; free is what is left)
 *   mig    PLACE  UUID  NAME  TOTAL  USED  RESERVED     (a slice; its GPU is in MIG mode; see `PLACES`)
 *   proc   PLACE  PID   USED                            (USED "-": the driver gives no figure)
 *   mpsproc PLACE  PID  USED                            (a client of MPS, in a list of its own)
 *   migmode INDEX                                       (a GPU in MIG mode, perhaps without slices)
 *   live   PLACE  PID   USED  [mps]                     (beside the GPU's USED, while that process lives)
 *   error  FUNCTION  CODE  INDEX                        (INDEX -1: for every GPU)
 *   delay  FUNCTION  MILLISECONDS
 *
 * Only the calls of memoria/gpu/nvml.py are here; layouts are those of NVIDIA's nvml.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, UNKNOWN = 999 };
enum { MAX_GPUS = 16, MAX_PROCESSES = 64, EVERY_GPU = -1 };
/* The place of GPU i is i, that of its slice j is i + PLACES * (j + 1): the handle less one. */
enum { PLACES = 100, MAX_SLICES = 7 };

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

typedef struct { char uuid[96], name[96]; unsigned long long total, used, reserved; } gpu;

typedef struct {
  gpu gpus[MAX_GPUS];
  int gpu_count;
  gpu slices[MAX_GPUS][MAX_SLICES];
  int mig_mode[MAX_GPUS];
  process processes[MAX_PROCESSES];
  int process_gpu[MAX_PROCESSES], process_is_mps[MAX_PROCESSES], process_count;
  int code;
} world;

/* Zombies hold nothing, as with a real driver. */
static int lives(unsigned pid) {
  char path[32], text[512], *end;
  snprintf(path, sizeof path, "/proc/%u/stat", pid);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  size_t length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[length] = 0;
  end = strrchr(text, ')');
  return end && end[1] && end[2] != 'Z' && end[2] != 'X';
}

static void read_line(world *w, char *line, const char *function, int index) {
  char name[96], used[32], list[8] = "";
  int number, other, where;
  gpu g;
  process p = {0};
  if (sscanf(line, "gpu\t%d\t%95[^\t]\t%95[^\t]\t%llu\t%llu\t%llu", &number, g.uuid, g.name, &g.total, &g.used,
             &g.reserved) == 6 && number >= 0 && number < MAX_GPUS) {
    w->gpus[number] = g;
    if (number >= w->gpu_count) w->gpu_count = number + 1;
  } else if (sscanf(line, "mig\t%d\t%95[^\t]\t%95[^\t]\t%llu\t%llu\t%llu", &number, g.uuid, g.name, &g.total,
                    &g.used, &g.reserved) == 6 && number / PLACES >= 1 && number / PLACES <= MAX_SLICES) {
    w->slices[number % PLACES % MAX_GPUS][number / PLACES - 1] = g;
    w->mig_mode[number % PLACES % MAX_GPUS] = 1;
  } else if (sscanf(line, "migmode\t%d", &number) == 1 && number >= 0 && number < MAX_GPUS) {
    w->mig_mode[number] = 1;
  } else if ((sscanf(line, "proc\t%d\t%u\t%31s", &number, &p.pid, used) == 3 ||
              sscanf(line, "mpsproc\t%d\t%u\t%31s", &number, &p.pid, used) == 3) &&
             w->process_count < MAX_PROCESSES) {
    w->process_is_mps[w->process_count] = *line == 'm';
    p.used = strcmp(used, "-") == 0 ? ~0ULL : strtoull(used, NULL, 10);
    w->process_gpu[w->process_count] = number;
    w->processes[w->process_count++] = p;
  } else if (sscanf(line, "live\t%d\t%u\t%31s\t%7s", &number, &p.pid, used, list) >= 3 &&
             w->process_count < MAX_PROCESSES) {
    if (!lives(p.pid)) return;
    p.used = strtoull(used, NULL, 10);
    *(number < PLACES ? &w->gpus[number].used : &w->slices[number % PLACES][number / PLACES - 1].used) += p.used;
    w->process_gpu[w->process_count] = number;
    w->process_is_mps[w->process_count] = strcmp(list, "mps") == 0;
    w->processes[w->process_count++] = p;
  } else if (sscanf(line, "error\t%95[^\t]\t%d\t%d", name, &other, &where) == 3) {
    if (strcmp(name, function) == 0 && (where == EVERY_GPU || where == index)) w->code = other;
  } else if (sscanf(line, "delay\t%95[^\t]\t%d", name, &other) == 2) {
    if (strcmp(name, function) == 0) usleep((useconds_t)other * 1000);
  }
}

/* The file as `function` sees it for GPU `index`; `code` is what the call must return. */
static world look(const char *function, int index) {
  world w = {0};
  const char *path = getenv("NVML_STUB_FILE");
  FILE *file = path ? fopen(path, "r") : NULL;
  if (!file) {
    w.code = UNKNOWN;
    return w;
  }
  char line[512];
  while (fgets(line, sizeof line, file)) read_line(&w, line, function, index);
  fclose(file);
  if (w.code == SUCCESS && index != EVERY_GPU && index % PLACES >= w.gpu_count) w.code = INVALID_ARGUMENT;
  return w;
}

/* A handle is the index plus one: never NULL. */
static int index_of(void *handle) { return (int)(intptr_t)handle - 1; }

/* The GPU or slice at a place that `look` has checked. */
static gpu at(const world *w, int place) {
  return place < PLACES ? w->gpus[place] : w->slices[place % PLACES][place / PLACES - 1];
}

static int copy(char *to, unsigned length, const char *from) {
  if (strlen(from) >= length) return INSUFFICIENT_SIZE;
  strcpy(to, from);
  return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return look(__func__, EVERY_GPU).code; }

int nvmlShutdown(void) { return look(__func__, EVERY_GPU).code; }

const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  world w = look(__func__, EVERY_GPU);
  return w.code ? w.code : copy(version, length, "580.00.stub");
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  world w = look(__func__, EVERY_GPU);
  *count = (unsigned)w.gpu_count;
  return w.code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  world w = look(__func__, (int)index);
  *handle = (void *)(intptr_t)(index + 1);
  return w.code;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
  world w = look(__func__, index_of(handle));
  if (!w.code && index_of(handle) >= PLACES) return INVALID_ARGUMENT;
  *current = *pending = w.code ? 0 : (unsigned)w.mig_mode[index_of(handle)];
  return w.code;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
  *count = MAX_SLICES;
  return look(__func__, index_of(handle)).code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **found) {
  world w = look(__func__, index_of(handle));
  if (w.code) return w.code;
  if (index >= MAX_SLICES || !*w.slices[index_of(handle)][index].uuid) return NOT_FOUND;
  *found = (void *)(intptr_t)(index_of(handle) + PLACES * ((int)index + 1) + 1);
  return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
  world w = look(__func__, index_of(handle));
  return w.code ? w.code : copy(uuid, length, at(&w, index_of(handle)).uuid);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
  world w = look(__func__, index_of(handle));
  return w.code ? w.code : copy(name, length, at(&w, index_of(handle)).name);
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
  world w = look(__func__, index_of(handle));
  gpu g = at(&w, index_of(handle));
  /* The first version of the call counts what is reserved as used. */
  *memory = (memory_v1){g.total, g.total - g.used - g.reserved, g.used + g.reserved};
  return w.code;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
  world w = look(__func__, index_of(handle));
  gpu g = at(&w, index_of(handle));
  *memory = (memory_v2){memory->version, g.total, g.reserved, g.total - g.used - g.reserved, g.used};
  return w.code;
}

static int processes_of(const char *function, void *handle, int is_mps, unsigned *count, process *found) {
  world w = look(function, index_of(handle));
  if (w.code) return w.code;
  unsigned room = *count;
  *count = 0;
  for (int i = 0; i < w.process_count; i++) {
    /* A GPU's list is that of all its slices. */
    int place = w.process_gpu[i], wanted = index_of(handle);
    if (w.process_is_mps[i] != is_mps) continue;
    if (place != wanted && !(wanted < PLACES && place % PLACES == wanted)) continue;
    if (*count < room) found[*count] = w.processes[i];
    ++*count;
  }
  return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *found) {
  return processes_of(__func__, handle, 0, count, found);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, process *found) {
  return processes_of(__func__, handle, 1, count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process *found) {
  (void)found;
  *count = 0;
  return look(__func__, index_of(handle)).code;
}
