/** Entry of a pool worker; piscina calls the default export once per request. */
import { CALLS } from './calls.js';
import { serve } from './serve.js';

export default serve(CALLS);
