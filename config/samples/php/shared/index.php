<!DOCTYPE html>
<title>Causeway</title>
<p>Rendered by PHP <?= htmlspecialchars(PHP_VERSION) ?> on <?= htmlspecialchars(gethostname()) ?>
<p>for <?= htmlspecialchars($_SERVER['REMOTE_ADDR']) ?>, <?= 6 * 7 ?> times welcome.
