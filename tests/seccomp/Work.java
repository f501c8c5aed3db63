// What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files.
import java.io.*; import java.net.*; import java.nio.file.*; import java.util.*; import java.util.concurrent.*;
public class Work {
    public static void main(String[] none) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> sums = new ArrayList<>();
        for (int i = 0; i < 16; i++) sums.add(pool.submit(() -> { long sum = 0; for (int j = 0; j < 3_000_000; j++) sum += j % 7; return sum; }));
        for (Future<Long> sum : sums) if (sum.get() == 0) throw new AssertionError();
        ServerSocket server = new ServerSocket(0, 5, InetAddress.getLoopbackAddress());
        Future<?> served = pool.submit(() -> { try (Socket peer = server.accept()) { peer.getOutputStream().write(peer.getInputStream().read()); } return null; });
        try (Socket client = new Socket(server.getInetAddress(), server.getLocalPort())) {
            client.getOutputStream().write(7); if (client.getInputStream().read() != 7) throw new AssertionError();
        }
        served.get();
        if (new ProcessBuilder("sh", "-c", "exit 3").start().waitFor() != 3) throw new AssertionError();
        ScheduledExecutorService timers = Executors.newScheduledThreadPool(1);
        timers.schedule(() -> {}, 20, TimeUnit.MILLISECONDS).get();
        Path file = Files.createTempFile("work", "java"); Files.write(file, new byte[100_000]); Files.size(file); Files.delete(file);
        for (int i = 0; i < 50; i++) { byte[][] garbage = new byte[100][]; for (int j = 0; j < 100; j++) garbage[j] = new byte[10_000]; }
        System.gc(); Collections.list(NetworkInterface.getNetworkInterfaces()); new java.security.SecureRandom().nextInt();
        pool.shutdown(); timers.shutdown();
        System.out.println("work done");
    }
}
