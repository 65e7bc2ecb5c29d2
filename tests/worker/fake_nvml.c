/* A driver's NVML with two GPUs, an A100 and a T4: what `farcall.worker.nvml` calls, with the real signatures. */
#include <stdio.h>
#include <stdlib.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { const char *name, *uuid; unsigned minor; unsigned long long total; } gpu_t;

static gpu_t gpus[] = {
    {"NVIDIA A100-SXM4-80GB", "GPU-aaaa", 1, 81920ULL << 20},
    {"Tesla T4", "GPU-bbbb", 0, 15360ULL << 20},
};
static int users;

int nvmlInit_v2(void) { return getenv("FAKE_NVML_FAILS") ? 18 : (users++, 0); }
int nvmlShutdown(void) { users--; return 0; }
const char *nvmlErrorString(int status) { return status == 18 ? "Driver/library version mismatch" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "550.54.15"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = users > 0 ? 2 : 0; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = &gpus[index]; return 0; }
int nvmlDeviceGetName(void *gpu, char *text, unsigned n) { snprintf(text, n, "%s", ((gpu_t *)gpu)->name); return 0; }
int nvmlDeviceGetUUID(void *gpu, char *text, unsigned n) { snprintf(text, n, "%s", ((gpu_t *)gpu)->uuid); return 0; }
int nvmlDeviceGetMinorNumber(void *gpu, unsigned *minor) { *minor = ((gpu_t *)gpu)->minor; return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *memory) { memory->total = ((gpu_t *)gpu)->total; return 0; }
