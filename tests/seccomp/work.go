// What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files.
package main
import ("fmt"; "io"; "net"; "net/http"; "os"; "os/exec"; "os/signal"; "runtime"; "sync"; "syscall"; "time")
func must(err error) { if err != nil { panic(err) } }
func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0"); must(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong") }))
	reply, err := http.Get("http://" + listener.Addr().String()); must(err)
	body, err := io.ReadAll(reply.Body); must(err)
	if string(body) != "pong" { panic(string(body)) }
	out, err := exec.Command("echo", "hello").Output(); must(err)
	if string(out) != "hello\n" { panic(string(out)) }
	var group sync.WaitGroup
	for i := 0; i < 32; i++ { group.Add(1); go func() { defer group.Done(); runtime.LockOSThread(); sum := 0; for j := 0; j < 1e7; j++ { sum += j % 7 } }() }
	group.Wait()
	signals := make(chan os.Signal, 1); signal.Notify(signals, syscall.SIGUSR1); must(syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	select { case <-signals: case <-time.After(10 * time.Second): panic("no signal") }
	<-time.NewTimer(20 * time.Millisecond).C
	file, err := os.CreateTemp("", "work"); must(err); _, err = file.Write(make([]byte, 100000)); must(err); must(os.Remove(file.Name()))
	_, err = net.Interfaces(); must(err); _, err = net.LookupHost("localhost"); must(err)
	runtime.GC()
	fmt.Println("work done")
}
