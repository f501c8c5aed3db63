// A native dependency: a shared library with one function, and the same function as a Node addon (N-API). Needs no header and
// no library, so that it builds anywhere and loads everywhere; N-API's few names are stable since Node 8.

__attribute__((visibility("default"))) int kiln_answer(void) { return 42; }

#ifdef NODE_ADDON
typedef void *value;
typedef struct {
  int version;
  unsigned flags;
  const char *file;
  value (*init)(void *env, value exports);
  const char *name;
  void *priv;
  void *reserved[4];
} module;
extern int napi_create_int32(void *env, int number, value *result);
extern int napi_create_function(void *env, const char *name, unsigned long length, value (*call)(void *env, void *info), void *data, value *result);
extern int napi_set_named_property(void *env, value object, const char *name, value property);
extern void napi_module_register(module *registered);

static value answer(void *env, void *info) {
  value number = 0;
  (void)info;
  napi_create_int32(env, kiln_answer(), &number);
  return number;
}

static value init(void *env, value exports) {
  value function = 0;
  napi_create_function(env, "answer", ~0ul, answer, 0, &function);
  napi_set_named_property(env, exports, "answer", function);
  return exports;
}

static module registered = { 1, 0, __FILE__, init, "answer", 0, { 0 } };
__attribute__((constructor)) static void register_it(void) { napi_module_register(&registered); }
#endif
