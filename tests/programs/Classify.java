import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

/** Classifies a photo with the JDK's client, which offers HTTP/2 with its first request, as a form and as a body without a length. */
public class Classify {
  public static void main(String[] arguments) throws Exception {
    var photo = Files.readAllBytes(Path.of(arguments[1]));
    var form = new ByteArrayOutputStream();
    form.write("--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n".getBytes());
    form.write(photo);
    form.write("\r\n--b--\r\n".getBytes());
    for (var body : new byte[][] {photo, form.toByteArray(), new byte[21 << 20]}) {
      var client = HttpClient.newHttpClient(); // a new connection, and so a new offer
      var type = body == photo ? "image/jpeg" : "multipart/form-data; boundary=b";
      for (var publisher : new HttpRequest.BodyPublisher[] {BodyPublishers.ofByteArray(body), BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))}) {
        var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/predict")).header("Content-Type", type).POST(publisher).build();
        var answer = client.send(request, BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body().replaceAll(".*\"(predicted_class|code)\":\"(\\w+)\".*", "$2"));
      }
    }
  }
}
